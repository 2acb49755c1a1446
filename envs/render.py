"""Pictures of a single episode, drawn by Gymnasium's own renderers wherever one exists."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class Renderer(ABC):
    """Draws row 0 of a batch."""

    @abstractmethod
    def draw(self) -> NDArray[np.uint8]:
        """A picture (height, width, 3)."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release windows and contexts."""


def headless() -> None:
    """Let pygame draw off-screen, so that no display is needed."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")


class StateRenderer(Renderer):
    """Puts a state into Gymnasium's environment of the same task and asks that one to draw."""

    def __init__(self, env_id: str, state: Callable[[], NDArray[np.float64]], **attributes: Any) -> None:
        """`state`: the variables in Gymnasium's order; `attributes`: physics to set on its environment."""
        headless()
        self._state = state
        self._env: Any = gym.make(env_id, render_mode="rgb_array").unwrapped
        self._env.reset(seed=0)
        for name, value in attributes.items():
            setattr(self._env, name, value)

    def draw(self) -> NDArray[np.uint8]:
        """See `Renderer.draw`."""
        self._env.state = tuple(self._state())
        return np.asarray(self._env.render(), np.uint8)

    def close(self) -> None:
        """See `Renderer.close`."""
        self._env.close()


class CellRenderer(Renderer):
    """A bar of cells, the current one dark and the goal's red, for a task that has no picture of its own."""

    def __init__(self, position: Callable[[], int], cells: int, goal: int) -> None:
        """`goal`: the first of the goal's cells."""
        self._position = position
        self._cells = cells
        self._goal = goal

    def draw(self) -> NDArray[np.uint8]:
        """See `Renderer.draw`."""
        picture = np.full((24, 24 * self._cells, 3), 240, np.uint8)
        picture[:, 24 * self._goal :, 1:] = 180
        picture[:, ::24] = 128
        left = 24 * self._position()
        picture[4:20, left + 4 : left + 20] = 20
        return picture


class EnvRenderer(Renderer):
    """Asks a Gymnasium environment for a picture of itself, though it was made without a render mode.

    It is made without because some, LunarLander among them, add decoration to their world when they render.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """`env`: the environment that is being stepped."""
        headless()
        self._env: Any = env.unwrapped

    def draw(self) -> NDArray[np.uint8]:
        """See `Renderer.draw`."""
        self._env.render_mode = "rgb_array"
        try:
            return np.asarray(self._env.render(), np.uint8)
        finally:
            self._env.render_mode = None


class SegmentRenderer(Renderer):
    """Draws a planar robot's bodies from the side, the camera moving along; it needs no graphics driver."""

    _pixels_per_m = 160

    def __init__(self, segments: Callable[[], NDArray[np.float64]], goal: float) -> None:
        """`segments`: (n, 5) x and z of both ends and radius, m, the torso first; `goal`: x to be marked red."""
        headless()
        import pygame

        self._segments = segments
        self._goal = goal
        self._pygame: Any = pygame

    def draw(self) -> NDArray[np.uint8]:
        """See `Renderer.draw`."""
        pygame, scale = self._pygame, self._pixels_per_m
        surface = pygame.Surface((480, 360))
        surface.fill((235, 240, 245))
        segments = self._segments()
        centre = (segments[0, 0] + segments[0, 2]) / 2
        ground = 330

        def at(x: float, z: float) -> tuple[int, int]:
            return round(240 + scale * (x - centre)), round(ground - scale * z)

        pygame.draw.rect(surface, (170, 160, 150), (0, ground, 480, 30))
        for metre in range(int(np.floor(centre - 2)), int(np.ceil(centre + 2)) + 1):
            pygame.draw.line(surface, (110, 100, 95), at(metre, 0), at(metre, -0.1), 3)
        pygame.draw.line(surface, (200, 60, 60), at(self._goal, 0), at(self._goal, -0.2), 5)
        for x1, z1, x2, z2, radius in segments:
            pygame.draw.line(surface, (60, 90, 150), at(x1, z1), at(x2, z2), max(2, round(2 * scale * radius)))
            for end in (at(x1, z1), at(x2, z2)):
                pygame.draw.circle(surface, (60, 90, 150), end, round(scale * radius))
        return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1), np.uint8)

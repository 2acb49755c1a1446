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

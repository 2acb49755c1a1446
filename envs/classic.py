"""CartPole, MountainCar and Pendulum stepped as arrays, with Gymnasium's equations and constants as defaults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sppo.envs.episodes import ArrayEpisodes, pick
from sppo.envs.noise import uniform
from sppo.envs.render import Renderer, StateRenderer


class CartPole(ArrayEpisodes):
    """Precision CartPole: balance for the whole horizon and stand within `tolerance` degrees of upright at its end."""

    success_bonus = 20.0
    _variables = 4  # cart position, its speed, pole angle, its speed: rows 0 and 2 move by rows 1 and 3

    def __init__(
        self,
        *,
        horizon: int = 200,
        tolerance: float = 0.5,
        start_spread: float = 0.05,
        gravity: float = 9.8,
        force: float = 10.0,
        pole_length: float = 0.5,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps of 0.02 s.
            tolerance: largest pole angle at the end that counts as success, degrees.
            start_spread: start states are uniform in +-start_spread, in each of m, m/s, rad, rad/s.
            gravity: m/s^2.
            force: magnitude of the push on the cart, N.
            pole_length: half the pole's length, m.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (precision of the angle at every step).
        """
        high = np.array([4.8, np.inf, math.radians(24), np.inf])
        super().__init__(horizon, time_in_obs, reward, -high, high)
        self.single_action_space = spaces.Discrete(2)
        self.tolerance = tolerance
        self.start_spread = start_spread
        self.gravity = gravity
        self.force = force
        self.pole_length = pole_length
        self._forces = np.array([-force, force])
        self._limits = np.array([[2.4], [math.radians(12)]])

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return StateRenderer("CartPole-v1", self.drawn_state, length=self.pole_length)

    def _start(self, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.start_spread * (2 * uniform(seeds, 4).T - 1)

    def _simulate(self, actions: NDArray[Any]) -> None:
        state = self._state
        x_acc, theta_acc = cartpole_accelerations(
            state[2], state[3], pick(self._forces, actions), self.gravity, self.pole_length
        )
        # Euler: positions move by the old speeds.
        state[0::2] += 0.02 * state[1::2]
        state[1] += 0.02 * x_acc
        state[3] += 0.02 * theta_acc

    def _failed(self) -> NDArray[np.bool_] | None:
        over = np.abs(self._state[0::2]) > self._limits
        # count_nonzero is several times faster than any() on arrays this small.
        return np.logical_or.reduce(over, axis=0) if np.count_nonzero(over) else None

    def _judge(self) -> NDArray[np.bool_]:
        return np.asarray(np.abs(self._state[2]) <= math.radians(self.tolerance), np.bool_)

    def _shaped(self) -> NDArray[np.float64]:
        degrees = np.degrees(np.abs(self._state[2]))
        return np.asarray(0.2 + 0.8 * np.exp(-degrees) - 0.05 * np.abs(self._state[0]), np.float64)

    def _write_observation(self, out: NDArray[np.float32]) -> None:
        out[:] = self._state.T


def cartpole_accelerations(
    theta: NDArray[np.float64],
    theta_dot: NDArray[np.float64],
    force: NDArray[np.float64],
    gravity: float,
    half_length: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accelerations of the cart (m/s^2) and of the pole (rad/s^2): a 1 kg cart, a 0.1 kg pole, no friction.

    Source: Florian, Correct equations for the dynamics of the cart-pole system (2007), as in Gymnasium.
    """
    pole, total = 0.1, 1.1
    sin, cos = np.sin(theta), np.cos(theta)
    push = (force + (pole * half_length) * theta_dot * theta_dot * sin) / total
    theta_acc = (gravity * sin - cos * push) / (half_length * (4.0 / 3.0 - (pole / total) * cos * cos))
    x_acc = push - (pole * half_length / total) * theta_acc * cos
    return x_acc, theta_acc


class MountainCar(ArrayEpisodes):
    """An underpowered car in a valley: reach `goal_position` within the horizon."""

    success_bonus = 100.0
    _variables = 2  # position, velocity

    def __init__(
        self,
        *,
        horizon: int = 1000,
        goal_position: float = 0.45,
        start_position: float = -0.5,
        start_spread: float = 0.1,
        force: float = 0.001,
        gravity: float = 0.0025,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps.
            goal_position: reaching it ends the episode in success; the valley's floor is at -0.52, the top at 0.52.
            start_position: centre of the start positions; the start velocity is 0.
            start_spread: start positions are uniform in start_position +- start_spread.
            force: the engine's change of velocity per step.
            gravity: the slope's largest change of velocity per step.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (20 |velocity| - 1 at every step).
        """
        high = np.array([0.6, 0.07])
        super().__init__(horizon, time_in_obs, reward, [-1.2, -0.07], high)
        self.single_action_space = spaces.Discrete(3)
        self.goal_position = goal_position
        self.start_position = start_position
        self.start_spread = start_spread
        self.gravity = gravity
        self._forces = np.array([-force, 0.0, force])

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return StateRenderer("MountainCar-v0", self.drawn_state, goal_position=self.goal_position)

    def _start(self, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        state = np.zeros((2, len(seeds)))
        state[0] = self.start_position + self.start_spread * (2 * uniform(seeds, 1)[:, 0] - 1)
        return state

    def _simulate(self, actions: NDArray[Any]) -> None:
        move_car(self._state, pick(self._forces, actions), self.gravity)

    def _reached(self) -> NDArray[np.bool_] | None:
        reached = self._state[0] >= self.goal_position
        return reached if np.count_nonzero(reached) else None

    def _judge(self) -> NDArray[np.bool_]:
        return np.asarray(self._state[0] >= self.goal_position, np.bool_)

    def _shaped(self) -> NDArray[np.float64]:
        return np.asarray(20 * np.abs(self._state[1]) - 1, np.float64)

    def _write_observation(self, out: NDArray[np.float32]) -> None:
        out[:] = self._state.T


def move_car(state: NDArray[np.float64], push: NDArray[np.float64], gravity: float) -> None:
    """Move position and velocity, the rows of `state` (2, ...), by one step: sin(3x) is the hill's height."""
    position, velocity = state
    velocity += push - gravity * np.cos(3 * position)
    np.clip(velocity, -0.07, 0.07, out=velocity)
    position += velocity
    np.clip(position, -1.2, 0.6, out=position)
    # The wall on the left takes the speed, not the one on the right: Gymnasium's rule.
    velocity[(position == -1.2) & (velocity < 0)] = 0.0


class Pendulum(ArrayEpisodes):
    """Swing a pendulum up and have it within `min_cos` of upright when the horizon ends."""

    success_bonus = 20.0
    _variables = 2  # angle (0 = upright), its speed

    def __init__(
        self,
        *,
        horizon: int = 1000,
        min_cos: float = 0.8,
        start_angle_spread: float = math.pi,
        start_speed_spread: float = 1.0,
        gravity: float = 10.0,
        max_torque: float = 2.0,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps of 0.05 s.
            min_cos: success if the cosine of the final angle is larger.
            start_angle_spread: start angles are uniform in +-start_angle_spread from upright, rad.
            start_speed_spread: start speeds are uniform in +-start_speed_spread, rad/s.
            gravity: m/s^2.
            max_torque: larger torques are clipped to it, N m.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (an upright bonus less small costs of speed and torque).
        """
        high = np.array([1.0, 1.0, 8.0])
        super().__init__(horizon, time_in_obs, reward, -high, high)
        self.single_action_space = spaces.Box(-max_torque, max_torque, (1,), np.float32)
        self.min_cos = min_cos
        self.start_angle_spread = start_angle_spread
        self.start_speed_spread = start_speed_spread
        self.gravity = gravity
        self.max_torque = max_torque
        self._last_torque = np.zeros(0)

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return StateRenderer("Pendulum-v1", self.drawn_state)

    def _start(self, seeds: NDArray[np.int64]) -> NDArray[np.float64]:
        spread = np.array([[self.start_angle_spread], [self.start_speed_spread]])
        return spread * (2 * uniform(seeds, 2).T - 1)

    def _simulate(self, actions: NDArray[Any]) -> None:
        torque = np.clip(actions.reshape(len(self._t)), -self.max_torque, self.max_torque)
        if not np.isfinite(torque).all():
            raise ValueError("actions must be finite")
        self._last_torque = torque
        swing(self._state, torque, self.gravity)

    def _judge(self) -> NDArray[np.bool_]:
        return np.asarray(np.cos(self._state[0]) > self.min_cos, np.bool_)

    def _shaped(self) -> NDArray[np.float64]:
        angle, speed = self._state
        upright = np.cos(angle)
        effort = 0.01 * speed**2 + 0.001 * self._last_torque**2
        return np.asarray(0.5 * (1 + upright) + (upright > self.min_cos) - effort, np.float64)

    def _write_observation(self, out: NDArray[np.float32]) -> None:
        angle, speed = self._state
        out[:, 0] = np.cos(angle)
        out[:, 1] = np.sin(angle)
        out[:, 2] = speed


def swing(state: NDArray[np.float64], torque: NDArray[Any], gravity: float) -> None:
    """Move angle and speed, the rows of `state` (2, ...), by 0.05 s: a rod of 1 kg and 1 m, semi-implicit Euler."""
    angle, speed = state
    speed += 0.05 * ((1.5 * gravity) * np.sin(angle) + 3.0 * torque)
    np.clip(speed, -8.0, 8.0, out=speed)
    angle += 0.05 * speed

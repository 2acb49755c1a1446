"""Hopper on MuJoCo: Gymnasium's Hopper-v5 model and rules, judged once at the end."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sppo.envs.episodes import OutcomeEpisodes, Snapshot
from sppo.envs.noise import uniform
from sppo.envs.render import Renderer, SegmentRenderer

try:
    import mujoco
except ImportError as error:
    raise ImportError("sppo/Hopper needs MuJoCo: pip install 'sppo[mujoco]'") from error

_XML = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets", "hopper.xml")
_FRAME_SKIP = 4
# Beside positions and speeds it holds the solver's warm start, without which a resumed episode drifts in the last bits.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class Hopper(OutcomeEpisodes):
    """A one-legged robot: stay up for the whole horizon and end more than `min_x` ahead.

    Each row has its own `MjData`, stepped in a loop: the physics (16 evaluations per step) takes so much longer than
    the loop that MuJoCo's batched rollout gains nothing on one core, and it would lose the solver's warm start.
    """

    success_bonus = 50.0

    def __init__(
        self,
        *,
        horizon: int = 1000,
        min_x: float = 1.0,
        start_spread: float = 5e-3,
        min_height: float = 0.7,
        max_angle: float = 0.2,
        gravity: float = 9.81,
        strength: float = 1.0,
        time_in_obs: bool = True,
        reward: str = "sparse",
    ) -> None:
        """Set the dials.

        Args:
            horizon: steps of 0.008 s.
            min_x: position along the track to be exceeded at the end, m; episodes start at 0.
            start_spread: start positions and speeds are uniform in +-start_spread around upright rest, m, rad, /s.
            min_height: the robot has fallen when its torso is lower, m.
            max_angle: the robot has fallen when its torso leans further, rad.
            gravity: m/s^2.
            strength: factor on the three motors' torques.
            time_in_obs: append t / horizon to the observation.
            reward: "sparse" or "dense" (0.5 + 4 clip(forward speed, -0.5, 0.5) at every step).
        """
        high = np.full(11, np.inf)
        high[5:] = 10.0
        super().__init__(horizon, time_in_obs, reward, -high, high)
        self.single_action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.min_x = min_x
        self.start_spread = start_spread
        self.min_height = min_height
        self.max_angle = max_angle
        self.model: Any = mujoco.MjModel.from_xml_path(_XML)
        self.model.opt.gravity[2] = -gravity
        self.model.actuator_gear[:, 0] *= strength
        self._size = mujoco.mj_stateSize(self.model, _STATE)
        self._saved = {"state": (self._size,)}
        self._data: list[Any] = []
        self._read()

    def make_renderer(self) -> Renderer:
        """See `Episodes.make_renderer`."""
        return SegmentRenderer(self._segments, self.min_x)

    def _segments(self) -> NDArray[np.float64]:
        """(geoms, 5) x and z of both ends and radius of each body of row 0, m, seen from the side."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = self._data[0].qpos
        mujoco.mj_kinematics(self.model, data)
        capsules = self.model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
        centre = data.geom_xpos[capsules]
        half = data.geom_xmat[capsules].reshape(-1, 3, 3)[:, :, 2] * self.model.geom_size[capsules, 1:2]
        ends = np.hstack([(centre - half)[:, [0, 2]], (centre + half)[:, [0, 2]]])
        return np.hstack([ends, self.model.geom_size[capsules, :1]])

    def _clear(self, n: int) -> None:
        while len(self._data) < n:
            self._data.append(mujoco.MjData(self.model))
        self._read()

    def _add(self, rows: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
        noise = self.start_spread * (2 * uniform(seeds, self.model.nq + self.model.nv) - 1)
        for row, spread in zip(rows, noise, strict=True):
            data = self._data[row]
            mujoco.mj_resetData(self.model, data)
            data.qpos[:] += spread[: self.model.nq]
            data.qvel[:] = spread[self.model.nq :]
            mujoco.mj_forward(self.model, data)
        self._read()

    def _keep(self, positions: NDArray[np.int64]) -> None:
        self._read()

    def _read(self) -> None:
        """Copy positions and speeds of the running rows out of the simulator."""
        running = [self._data[row] for row in self._running] if self._data else []
        self._qpos = np.array([data.qpos for data in running]).reshape(-1, self.model.nq)
        self._qvel = np.array([data.qvel for data in running]).reshape(-1, self.model.nv)

    def _simulate(self, actions: NDArray[Any]) -> None:
        if not np.isfinite(actions).all():
            raise ValueError("actions must be finite")
        model, step, all_data = self.model, mujoco.mj_step, self._data
        self._x_before = self._qpos[:, 0]
        for row, action in zip(self._running.tolist(), actions, strict=True):
            data = all_data[row]
            data.ctrl[:] = action
            step(model, data, _FRAME_SKIP)
        self._read()

    def _failed(self) -> NDArray[np.bool_] | None:
        height, angle = self._qpos[:, 1], self._qpos[:, 2]
        # Written so that NaN counts as fallen.
        up = (height > self.min_height) & (np.abs(angle) < self.max_angle)
        up &= (np.abs(self._qpos[:, 2:]) < 100).all(axis=1) & (np.abs(self._qvel) < 100).all(axis=1)
        return None if up.all() else ~up

    def _judge(self) -> NDArray[np.bool_]:
        x: NDArray[np.float64] = self._qpos[:, 0]
        return x > self.min_x

    def _shaped(self) -> NDArray[np.float64]:
        speed: NDArray[np.float64] = (self._qpos[:, 0] - self._x_before) / (_FRAME_SKIP * self.model.opt.timestep)
        return 0.5 + 4 * np.clip(speed, -0.5, 0.5)

    def _write_observation(self, out: NDArray[np.float32]) -> None:
        out[:, :5] = self._qpos[:, 1:]
        np.clip(self._qvel, -10, 10, out=out[:, 5:], casting="same_kind")

    def _save(self) -> Snapshot:
        states = np.empty((len(self._running), self._size))
        for state, row in zip(states, self._running, strict=True):
            mujoco.mj_getState(self.model, self._data[row], state, _STATE)
        return {"state": states}

    def _load(self, snapshot: Snapshot) -> None:
        for data, state in zip(self._data, np.asarray(snapshot["state"], np.float64), strict=False):
            mujoco.mj_resetData(self.model, data)
            mujoco.mj_setState(self.model, data, state, _STATE)
        self._read()

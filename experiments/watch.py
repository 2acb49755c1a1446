"""An animated picture of a trained policy at work."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image

from sppo.envs.adapters import EpisodeEnv
from sppo.experiments.board import show_video
from sppo.experiments.config import read_config
from sppo.experiments.control import make_episodes
from sppo.experiments.folders import is_finished
from sppo.experiments.run import load_run
from sppo.experiments.tasks import TEXT


def watch(run: Path, out: Path | None = None, *, n_episodes: int = 3, fps: int = 30, max_frames: int = 600) -> Path:
    """Write an animated GIF of episodes on held-out starts, with the policy of the run's newest checkpoint.

    Of a finished run, without `out`, it is also shown in TensorBoard.

    Args:
        run: a run folder.
        out: the file to write; by default video.gif in the run folder.
        n_episodes: episodes to show.
        fps: frames per second of the picture.
        max_frames: long episodes are thinned out to this many frames in all.

    Raises:
        ValueError: if the folder holds no run, no checkpoint, or a task that cannot be drawn.
    """
    config = read_config(run)
    if n_episodes < 1:
        raise ValueError(f"at least one episode is needed, got {n_episodes}")
    if config.env_id.startswith(TEXT):
        raise ValueError(f"{config.env_id} is text: its responses are in {run / 'completions.jsonl'}")
    agent = load_run(run)
    env: gym.Env = EpisodeEnv(make_episodes(config), render_mode="rgb_array")
    frames: list[np.ndarray] = []
    for episode in range(n_episodes):
        obs, _ = env.reset(options={"episode_seed": episode})
        over = False
        while not over:
            action, _ = agent.predict(obs)
            obs, _, terminated, truncated, _ = env.step(action)
            over = bool(terminated or truncated)
            frame = env.render()
            assert isinstance(frame, np.ndarray)
            frames.append(frame)
    chosen = frames[:: max(1, -(-len(frames) // max_frames))]
    images = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in chosen]
    video = out or run / "video.gif"
    images[0].save(video, save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)
    if out is None and is_finished(run):  # of a run in training TensorBoard would read nothing more after it
        show_video(run, video, images[0].size, agent.num_steps)
    return video

"""Text as a Gymnasium environment: a prompt, tokens one by one, the verifier's outcome at the end.

import gymnasium, sppo.llm.text_env
env = gymnasium.make("sppo/Text-v0", task="arithmetic", tokenizer="arithmetic", max_completion_length=88)
envs = gymnasium.make_vec("sppo/Text-v0", num_envs=8, task="arithmetic", tokenizer="arithmetic", ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sppo.llm.engine import stop_tokens
from sppo.llm.sources import find_model
from sppo.llm.tasks import make_task
from sppo.llm.tokenizer import encode_prompt, load_tokenizer

Observation = NDArray[np.int64]


class TextEnv(gym.Env[Observation, Any]):
    """One response at a time.

    Observations are the prompt's and the response's token ids so far, padded with -1 to (context,); an action is a
    token id. A stop token, or the end of the token budget, which is part of the task, is `terminated`; the reward, 0
    until then, is the task's score of the response. `info["is_success"]` at the end.

    Args:
        task: gives prompts and scores responses; or its name, see `sppo.llm.tasks.make_task`.
        tokenizer: whose ids are observed and chosen; or the model that it belongs to, see `find_model`.
        max_completion_length: the token budget of a response, stop token included.
        task_options: with a name, the task's options.
        split: of the task's prompts.
        prompts: in place of the split's.
    """

    metadata = {"render_modes": ["ansi"]}

    def __init__(
        self,
        task: Any,
        tokenizer: Any,
        *,
        max_completion_length: int,
        task_options: Mapping[str, Any] | None = None,
        split: str = "train",
        prompts: Sequence[Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if max_completion_length < 1:
            raise ValueError(f"max_completion_length must be positive, got {max_completion_length}")
        self.task = make_task(task, **(task_options or {})) if isinstance(task, str) else task
        self.tokenizer = load_tokenizer(find_model(tokenizer)) if isinstance(tokenizer, str) else tokenizer
        self.render_mode = render_mode
        self.horizon, self.stops = max_completion_length, stop_tokens(self.tokenizer)
        self.prompts = list(self.task.prompts(split) if prompts is None else prompts)
        if not self.prompts:
            raise ValueError(f"the task has no prompts in its split {split!r}")
        self.encoded = [encode_prompt(self.tokenizer, prompt.prompt) for prompt in self.prompts]
        context = max(map(len, self.encoded)) + max_completion_length
        self.observation_space = spaces.Box(-1, len(self.tokenizer) - 1, (context,), np.int64)
        self.action_space = spaces.Discrete(len(self.tokenizer))
        self.index = 0
        self.written: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start on a prompt drawn at random, or on `options["prompt"]`, an index."""
        super().reset(seed=seed)
        chosen = (options or {}).get("prompt")
        self.index = int(self.np_random.integers(len(self.prompts))) if chosen is None else int(chosen)
        self.written = []
        return observe(self, self.index, self.written), {"prompt": self.index}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Write one token."""
        self.written.append(int(action))
        observation = observe(self, self.index, self.written)
        if not is_over(self, self.written):
            return observation, 0.0, False, False, {}
        score = self.task.score(self.prompts[self.index], self.response)
        return observation, score.reward, True, False, {"is_success": score.reward >= 1, "reason": score.reason}

    @property
    def response(self) -> str:
        """What has been written so far."""
        return spelled(self, self.written)

    def render(self) -> str:
        """The prompt and the response so far."""
        return str(self.tokenizer.decode(self.encoded[self.index])) + self.response

    def snapshot(self) -> dict[str, Any]:
        """The state: a prompt and what has been written."""
        return {"prompt": self.index, "written": list(self.written)}

    def restore(self, snapshot: dict[str, Any]) -> Observation:
        """Go on from a state."""
        self.index, self.written = snapshot["prompt"], list(snapshot["written"])
        return observe(self, self.index, self.written)


class TextVectorEnv(VectorEnv[Observation, Any, Any]):
    """Several responses side by side, those that end at the same step scored together.

    A row that has ended begins anew with the next step, whose action it ignores (`AutoresetMode.NEXT_STEP`).

    Args:
        num_envs: rows.
        options: of `TextEnv`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.num_envs = num_envs
        self.one = one = TextEnv(**options)
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        self.observation_space = batch_space(one.observation_space, num_envs)
        self.action_space = batch_space(one.action_space, num_envs)
        self.indices = np.zeros(num_envs, np.int64)
        self.written: list[list[int]] = [[] for _ in range(num_envs)]
        self.over = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start every row on a prompt drawn at random, or on `options["prompt"]`, (num_envs,) indices."""
        if isinstance(seed, list):
            raise ValueError("one seed for all rows is taken, not a list")
        if seed is not None:
            self._np_random, self._np_random_seed = gym.utils.seeding.np_random(seed)
        chosen = (options or {}).get("prompt")
        draw = self.np_random.integers(len(self.one.prompts), size=self.num_envs)
        self.indices = draw if chosen is None else np.asarray(chosen, np.int64).copy()
        self.written = [[] for _ in range(self.num_envs)]
        self.over[:] = False
        return self._observe(), {"prompt": self.indices.copy()}

    def step(
        self, actions: Any
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Write one token in every row."""
        begins = self.over.copy()
        for i, action in enumerate(np.asarray(actions).tolist()):
            if begins[i]:
                self.indices[i], self.written[i] = self.np_random.integers(len(self.one.prompts)), []
            else:
                self.written[i].append(action)
        self.over = np.array([bool(w) and is_over(self.one, w) for w in self.written])
        rewards, reasons = np.zeros(self.num_envs), np.full(self.num_envs, "", object)
        rows = np.flatnonzero(self.over).tolist()
        prompts = [self.one.prompts[self.indices[i]] for i in rows]
        scores = self.one.task.score_all(prompts, [spelled(self.one, self.written[i]) for i in rows]) if rows else []
        for i, score in zip(rows, scores, strict=True):
            rewards[i], reasons[i] = score.reward, score.reason
        info = {"is_success": rewards >= 1, "_is_success": self.over, "reason": reasons, "_reason": self.over}
        return self._observe(), rewards, self.over.copy(), np.zeros(self.num_envs, bool), info if rows else {}

    def _observe(self) -> Observation:
        return np.stack([observe(self.one, int(i), w) for i, w in zip(self.indices, self.written, strict=True)])


def observe(env: TextEnv, index: int, written: list[int]) -> Observation:
    """(context,) the prompt's and the response's ids, padded with -1."""
    assert env.observation_space.shape is not None
    observation = np.full(env.observation_space.shape, -1, np.int64)
    ids = env.encoded[index] + written
    observation[: len(ids)] = ids
    return observation


def is_over(env: TextEnv, written: list[int]) -> bool:
    """A stop token came, or the budget's end."""
    return written[-1] in env.stops or len(written) == env.horizon


def spelled(env: TextEnv, written: list[int]) -> str:
    """The response's text, without what ends it."""
    return str(env.tokenizer.decode(written, skip_special_tokens=True))


gym.register(
    "sppo/Text-v0",
    entry_point="sppo.llm.text_env:TextEnv",
    vector_entry_point="sppo.llm.text_env:TextVectorEnv",
    disable_env_checker=True,
)

"""Text as a Gymnasium environment: a prompt, tokens one by one, the verifier's outcome at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sppo.llm.tokenizer import encode_prompt

Observation = NDArray[np.int64]


class TextEnv(gym.Env[Observation, Any]):
    """One response at a time.

    Observations are the prompt's and the response's token ids so far, padded with -1 to (context,); an action is a
    token id. A stop token, or the end of the token budget, which is part of the task, is `terminated`; the reward, 0
    until then, is the task's score of the response. `info["is_success"]` at the end.

    Args:
        task: gives prompts and scores responses.
        tokenizer: whose ids are observed and chosen.
        max_completion_length: the token budget of a response, stop token included.
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
        split: str = "train",
        prompts: Sequence[Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task, self.tokenizer, self.render_mode = task, tokenizer, render_mode
        self.horizon = max_completion_length
        self.prompts = list(task.prompts(split) if prompts is None else prompts)
        if not self.prompts:
            raise ValueError(f"the task has no prompts in its split {split!r}")
        self.encoded = [encode_prompt(tokenizer, prompt.prompt) for prompt in self.prompts]
        context = max(map(len, self.encoded)) + max_completion_length
        self.observation_space = spaces.Box(-1, len(tokenizer) - 1, (context,), np.int64)
        self.action_space = spaces.Discrete(len(tokenizer))
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
        return self._observe(), {"prompt": self.index}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Write one token."""
        self.written.append(int(action))
        over = self.written[-1] == self.tokenizer.eos_token_id or len(self.written) == self.horizon
        if not over:
            return self._observe(), 0.0, False, False, {}
        score = self.task.score(self.prompts[self.index], self.response)
        return self._observe(), score.reward, True, False, {"is_success": score.reward >= 1, "reason": score.reason}

    @property
    def response(self) -> str:
        """What has been written so far."""
        return str(self.tokenizer.decode(self.written, skip_special_tokens=True))

    def render(self) -> str:
        """The prompt and the response so far."""
        return str(self.tokenizer.decode(self.encoded[self.index])) + self.response

    def snapshot(self) -> dict[str, Any]:
        """The state: a prompt and what has been written."""
        return {"prompt": self.index, "written": list(self.written)}

    def restore(self, snapshot: dict[str, Any]) -> Observation:
        """Go on from a state."""
        self.index, self.written = snapshot["prompt"], list(snapshot["written"])
        return self._observe()

    def _observe(self) -> Observation:
        assert self.observation_space.shape is not None
        observation = np.full(self.observation_space.shape, -1, np.int64)
        ids = self.encoded[self.index] + self.written
        observation[: len(ids)] = ids
        return observation


gym.register("sppo/Text-v0", entry_point="sppo.llm.text_env:TextEnv", disable_env_checker=True)

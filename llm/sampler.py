"""Text as a domain: an engine continues prompts, a task scores what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sppo.agents.batch import Rows, Trajectories
from sppo.agents.losses import ValueLossName
from sppo.agents.protocols import Snapshot
from sppo.llm.critics import SharedTextStartCritic, SharedTextStepCritic, TextStartCritic, TextStepCritic, new_head
from sppo.llm.engine import Completion, Engine
from sppo.llm.policy import Prefixes, TextPolicy, critic_base
from sppo.llm.tokenizer import encode_prompt

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Response:
    """A finished response and what its task says of it."""

    prompt: Any
    text: str
    length: int  # tokens, stop token included
    stopped: bool  # False where the token budget came first
    reward: float
    reason: str


class TextStates:
    """The prefixes that a rollout passed through, by row and step."""

    def __init__(self, prompts: Array, before: list[Tensor], actions: Tensor, last: Array) -> None:
        self.prompts, self.before, self.actions = prompts, before, actions
        self.last = last  # (B,) the last step before which the row was still running

    def __getitem__(self, rows: Rows) -> TextStates:
        index = np.arange(len(self.prompts))[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        return TextStates(self.prompts[index], [self.before[i] for i in index], self.actions[rows], self.last[index])

    def running(self, rows: Array, steps: Array) -> NDArray[np.bool_]:
        """(n,) True where the row was still running before the step."""
        return steps <= self.last[rows]

    def at(self, rows: Array, steps: Array) -> Snapshot:
        """States (n,) of these rows before these steps: starts to resume from."""
        if not (running := self.running(rows, steps)).all():
            i = int(np.argmin(running))
            raise ValueError(f"row {rows[i]} has no running state at step {steps[i]}")
        written = np.empty(len(rows), object)
        for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
            written[i] = torch.cat([self.before[row], self.actions[row, :step]])
        return {"prompt": self.prompts[rows], "written": written}


class TextSampler:
    """Rolls out a language model on a task's prompts: a token is an action, a prefix a state, the verifier's reward R.

    The stop token is an action, and the token budget is part of the task: its end is terminal.

    Args:
        task: gives prompts and scores responses.
        policy: a TextPolicy.
        engine: generates with the policy's weights.
        max_completion_length: the token budget of a response, stop token included.
        split: of the task's prompts to train on.
        seed: of the order of prompts, and of sampling.
        critic: makes the body of a new critic; by default a copy of the policy's.
        prompts: in place of the split's.
        on_scored: told all responses that were scored together.
    """

    def __init__(
        self,
        task: Any,
        policy: TextPolicy,
        engine: Engine,
        *,
        max_completion_length: int,
        split: str = "train",
        seed: int = 0,
        critic: Callable[[], Any] | None = None,
        prompts: Sequence[Any] | None = None,
        on_scored: Callable[[list[Response]], None] | None = None,
    ) -> None:
        if max_completion_length < 1:
            raise ValueError(f"max_completion_length must be positive, got {max_completion_length}")
        self.task, self.policy, self.engine = task, policy, engine
        self.horizon = max_completion_length
        self.seed = seed
        self.prompts = list(task.prompts(split) if prompts is None else prompts)
        if not self.prompts:
            raise ValueError(f"the task has no prompts in its split {split!r}")
        self._encoded: dict[int, Tensor] = {}
        self.generators = {"actions": np.random.default_rng([seed, 0])}
        self.counts = {"env_steps": 0, "episodes": 0, "prompts_drawn": 0}
        self.reasons: Counter[str] = Counter()
        self.on_scored = on_scored
        self._critic = critic or (lambda: critic_base(policy.model))

    def prefix(self, index: int) -> Tensor:
        """(P,) token ids of a prompt."""
        if index not in self._encoded:
            self._encoded[index] = torch.tensor(encode_prompt(self.policy.tokenizer, self.prompts[index].prompt))
        return self._encoded[index]

    def starts(self, n: int) -> Array:
        """(n,) indices of the next prompts; each pass over them has an order of its own."""
        size, first = len(self.prompts), self.counts["prompts_drawn"]
        self.counts["prompts_drawn"] += n
        passes = range(first // size, (first + n - 1) // size + 1)
        orders = [np.random.default_rng([self.seed, 1, p]).permutation(size) for p in passes]
        return np.concatenate([*orders, np.zeros(0, np.int64)])[first % size :][:n]

    def step_critic(self, value_loss: ValueLossName) -> TextStepCritic:
        """A new critic of every prefix."""
        return TextStepCritic(self._critic(), value_loss=value_loss)

    def start_critic(self, value_loss: ValueLossName) -> TextStartCritic:
        """A new critic of the prompt alone."""
        return TextStartCritic(self._critic(), value_loss=value_loss)

    def shared_critic(self, sees: Literal["start", "steps"], value_loss: ValueLossName) -> Any:
        """A critic of the one or the other behind the policy's last layer, which is given a head for it."""
        self.policy.value_head = new_head(self.policy.base)
        kind = {"start": SharedTextStartCritic, "steps": SharedTextStepCritic}[sees]
        return kind(self.policy, value_loss=value_loss)

    def rollout(
        self,
        starts: Array | Snapshot,
        *,
        greedy: bool = False,
        max_steps: int | Array | None = None,
        keep_states: bool = False,
    ) -> Trajectories:
        """Answer each prompt, or go on from each state, until a stop token, the end of the budget, or `max_steps`.

        Args:
            starts: (n,) prompt indices, or n states to resume from.
            greedy: take the most probable token instead of sampling.
            max_steps: a number for all or (n,); rows cut there are marked truncated, and not scored.
            keep_states: record the state before every step in `states`.
        """
        fresh = not isinstance(starts, dict)
        prompts = np.asarray(starts["prompt"] if isinstance(starts, dict) else starts, np.int64)
        none = torch.zeros(0, dtype=torch.int64)
        written = list(starts["written"]) if isinstance(starts, dict) else [none] * len(prompts)
        budgets = np.array([self.horizon - len(w) for w in written])
        limits = budgets if max_steps is None else np.minimum(budgets, max_steps)
        prefixes = [torch.cat([self.prefix(i), w]) for i, w in zip(prompts.tolist(), written, strict=True)]
        done = self.engine.generate(prefixes, limits.tolist(), greedy=greedy, generator=self.generators["actions"])
        lengths = torch.tensor([len(c.tokens) for c in done])
        over = torch.tensor([c.stopped or len(c.tokens) == b for c, b in zip(done, budgets.tolist(), strict=True)])
        actions = pad_sequence([c.tokens for c in done], batch_first=True)
        valid = torch.arange(actions.shape[1]) < lengths[:, None]
        outcomes = self._score(prompts, written, done, over)
        rewards = torch.zeros(actions.shape)
        rewards[over, lengths[over] - 1] = outcomes[over]
        self.counts["env_steps"] += int(lengths.sum())
        self.counts["episodes"] += len(done) if fresh else 0
        traj = Trajectories(
            inputs=Prefixes.of(prefixes),
            actions=actions,
            logprobs=pad_sequence([c.logprobs for c in done], batch_first=True),
            rewards=rewards,
            valid=valid,
            terminated=over,
            truncated=~over,
            group=torch.from_numpy(np.unique(prompts, return_inverse=True)[1]) if fresh else torch.arange(len(prompts)),
            start_key=torch.tensor([self.prompts[i].key for i in prompts], dtype=torch.int64),
            success=outcomes >= 1,
            states=TextStates(prompts, written, actions, (lengths - over.long()).numpy()) if keep_states else None,
        )
        return self._recomputed(traj, greedy) if self.engine.copies_weights else traj

    def _recomputed(self, traj: Trajectories, greedy: bool) -> Trajectories:
        """With the policy's own log-probabilities, and beside them those of the copy that sampled."""
        with torch.no_grad():
            logprobs = self.policy.evaluate(traj)[0].to(traj.logprobs)
        # A greedy token is not drawn, so no ratio could make up for it.
        return replace(traj, logprobs=logprobs, behaviour_logprobs=logprobs if greedy else traj.logprobs)

    def step_ends(self, traj: Trajectories) -> Tensor:
        """(B, T) bool, True at tokens after which the response ends with the task's `step_separator`, a line break
        unless it has another."""
        separator = getattr(self.task, "step_separator", "\n")
        reach = len(separator.encode())  # tokens that may spell it, each at least a byte
        rows, steps = traj.valid.nonzero(as_tuple=True)
        places = zip(rows.tolist(), steps.tolist(), strict=True)
        spans = [traj.actions[i, max(0, t + 1 - reach) : t + 1].tolist() for i, t in places]
        tails = self.policy.tokenizer.batch_decode(spans, skip_special_tokens=True)
        ends = torch.zeros_like(traj.valid)
        ends[rows, steps] = torch.tensor([tail.endswith(separator) for tail in tails], dtype=torch.bool)
        return ends

    def text(self, tokens: Tensor) -> str:
        """The response that these tokens spell, without what ends it."""
        return self.policy.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

    def _score(self, prompts: Array, written: list[Tensor], done: list[Completion], over: Tensor) -> Tensor:
        rows = over.nonzero().squeeze(1).tolist()
        asked = [self.prompts[prompts[i]] for i in rows]
        texts = [self.text(torch.cat([written[i], done[i].tokens])) for i in rows]
        scores = self.task.score_all(asked, texts)
        outcomes = torch.zeros(len(done))
        outcomes[over] = torch.tensor([float(score.reward) for score in scores])
        self.reasons.update(score.reason for score in scores)
        if self.on_scored is not None:
            self.on_scored(
                [
                    Response(
                        prompt=prompt,
                        text=text,
                        length=len(written[i]) + len(done[i].tokens),
                        stopped=done[i].stopped,
                        reward=float(score.reward),
                        reason=score.reason,
                    )
                    for i, prompt, text, score in zip(rows, asked, texts, scores, strict=True)
                ]
            )
        return outcomes

    def predict(self, observations: Array, deterministic: bool) -> Array:
        """The next token of each prefix, padded with -1 as `TextEnv` observes it."""
        rows = np.atleast_2d(observations)
        prefixes = [torch.from_numpy(row[row >= 0].astype(np.int64)) for row in rows]
        generator = self.generators["actions"]
        done = self.engine.generate(prefixes, [1] * len(rows), greedy=deterministic, generator=generator)
        tokens = np.array([int(c.tokens[0]) for c in done])
        return tokens if observations.ndim > 1 else tokens[0]

    def with_prompts(self, prompts: Sequence[Any], *, task: Any = None, seed: int = 0) -> TextSampler:
        """The same policy and engine on other prompts, of this task or another, with counters of its own."""
        return TextSampler(
            self.task if task is None else task,
            self.policy,
            self.engine,
            max_completion_length=self.horizon,
            seed=seed,
            prompts=prompts,
        )

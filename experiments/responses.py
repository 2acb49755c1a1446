"""What runs on text do between updates: set the critic's first prediction, count and keep what was answered."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Sequence

import torch

from sppo.agents import Agent
from sppo.agents.callbacks import Callback
from sppo.experiments.runlog import RunLog
from sppo.llm.sampler import Response, TextSampler


def peak_bytes() -> int:
    """The most memory that this process has held so far: torch's on its GPU; without one, all of it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class FirstPrediction(Callback):
    """A critic starts at the start policy's success rate: from 0.5, all early advantages would have one sign."""

    def __init__(self, value: float | None) -> None:
        self.value = value

    def on_training_start(self, agent: Agent) -> None:
        if agent.n_updates > 0 or not hasattr(agent.critic, "start_at"):
            return
        value = self.value
        if value is None:
            agent.freeze_reference()  # rewards may be charged for moving away from it
            n = agent.config.episodes_per_update
            outcomes = agent.as_seen(agent.sampler.rollout(agent.sampler.starts(n))).outcomes
            value = min(max(float(outcomes.mean()), 0.5 / n), 1 - 0.5 / n)
        agent.critic.start_at(value)


class Responses(Callback):
    """Shares of the verifier's reasons and of responses cut off, and a few responses in full."""

    def __init__(self, agent: Agent, log: RunLog, held_out: TextSampler, n: int) -> None:
        self.agent, self.log, self.n = agent, log, n
        self.scored: list[Response] = []
        agent.sampler.on_scored = self.scored.extend
        held_out.on_scored = lambda responses: self._write("test", responses)

    def on_training_start(self, agent: Agent) -> None:
        self.scored.clear()  # what was sampled for the critic's first prediction belongs to no update

    def on_update(self, agent: Agent, metrics: dict[str, float]) -> None:
        scored, self.scored[:] = list(self.scored), []
        for reason, count in Counter(response.reason for response in scored).items():
            metrics[f"reward/{reason}"] = count / len(scored)
        metrics["memory/peak_gib"] = peak_bytes() / 2**30
        metrics["rollout/cut_off"] = sum(not response.stopped for response in scored) / max(1, len(scored))
        self._write("train", scored)

    def _write(self, split: str, responses: Sequence[Response]) -> None:
        self.log.completions(
            [
                {
                    "n_updates": self.agent.n_updates,
                    "env_steps": self.agent.num_steps,
                    "split": split,
                    "prompt": response.prompt.text,
                    "response": response.text,
                    "reward": response.reward,
                    "reason": response.reason,
                    "length": response.length,
                    "stopped": response.stopped,
                }
                for response in responses[: self.n]
            ]
        )

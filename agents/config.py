"""The settings that every algorithm has."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sppo.agents.losses import Aggregation, ImportanceLevel, KLEstimator


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings that every algorithm has, named as in stable-baselines3 where it has them.

    Args:
        learning_rate: of the policy's Adam.
        critic_learning_rate: of the critic's Adam.
        episodes_per_update: episodes sampled before each update; with `n_steps`, how many run side by side.
        n_steps: None runs whole episodes; a number cuts them after so many steps and resumes them in the next update,
            which needs a critic of every state, to value where they are cut.
        n_epochs: passes over the episodes of one update.
        critic_n_epochs: the same for the critic, where it differs: nothing clips how far it may learn.
        n_minibatches: optimiser steps per pass.
        batch_size: steps per minibatch (rows, where the policy has a memory), in place of n_minibatches.
        microbatch_size: rows per forward and backward pass; no effect on the gradient.
        microbatch_steps: or as many rows as hold so many steps, padding and tokens of prompts included; no effect on
            the gradient either.
        clip_range: the probability ratio's distance from 1 at which the objective is clipped.
        clip_range_high: the same above 1, where it differs.
        ent_coef: weight of the entropy bonus.
        max_grad_norm: gradients of each network are scaled down to this norm.
        target_kl: the policy's update ends before the first minibatch whose KL estimate exceeds 1.5 times this. A
            critic with layers of its own goes on; in a `shared_network` it stops too, for it would move the policy's.
        normalize_advantage: whiten the advantages of each batch.
        aggregation: how per-step losses are averaged.
        mask_threshold: rho in (0, 1): only steps whose action had a probability below rho carry loss, or, where actions
            are continuous, the share rho of the batch's steps with the lowest densities. None: all steps.
        kl_coef: weight of the divergence from the reference, which is the policy as it was when learning began.
        kl_estimator: "k1", "k2" or "k3", see `losses.kl_estimate`. None: k3 in the loss, k1 in the reward.
        kl_in: "loss" adds it to each step's loss; "reward" takes it off each step's reward, before credit is given.
        importance_sampling: where actions were drawn from a copy of the policy that rounds differently, weigh steps by
            the ratio of their probabilities: of each "token" or of the whole "sequence"; None: as if from the policy.
        importance_cap: the largest such weight.
        shared_network: the critic is a head behind the policy's hidden layers (a language model's last one), and both
            learn from the policy's loss + vf_coef x the critic's, with the policy's learning rate and passes;
            `critic_learning_rate` is not read.
        vf_coef: see there.
        reward_noise: chance of an outcome of 0 or 1 to be seen flipped; evaluation sees the truth.
        critic_width: units of each of the critic's hidden layers, where they differ from the policy's.
        critic_warmup: first updates, in which the critic learns and the policy stays as it is.
        adam_eps: Adam's epsilon.
        weight_decay: the share of the weights, times the learning rate, that each step takes off them (AdamW).
        seed: of start states, actions, minibatches and initial weights.
    """

    learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    episodes_per_update: int = 64
    n_steps: int | None = None
    n_epochs: int = 4
    critic_n_epochs: int | None = None
    n_minibatches: int = 4
    batch_size: int | None = None
    microbatch_size: int | None = None
    microbatch_steps: int | None = None
    clip_range: float = 0.2
    clip_range_high: float | None = None
    ent_coef: float = 0.0
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    normalize_advantage: bool = False
    aggregation: Aggregation = "token_mean"
    mask_threshold: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator | None = None
    kl_in: Literal["loss", "reward"] = "loss"
    importance_sampling: ImportanceLevel | None = None
    importance_cap: float = 2.0
    shared_network: bool = False
    vf_coef: float = 0.5
    reward_noise: float = 0.0
    critic_width: int | None = None
    critic_warmup: int = 0
    adam_eps: float = 1e-5
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "learning_rate critic_learning_rate episodes_per_update n_epochs n_minibatches clip_range max_grad_norm"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "critic_n_epochs",
            "critic_width",
            "n_steps",
            "batch_size",
            "microbatch_size",
            "microbatch_steps",
            "target_kl",
            "clip_range_high",
        ):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive or None, got {getattr(self, name)}")
        if self.mask_threshold is not None and not 0 < self.mask_threshold < 1:
            raise ValueError(f"mask_threshold must be in (0, 1) or None, got {self.mask_threshold}")
        for name in ("ent_coef", "kl_coef", "vf_coef", "critic_warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.reward_noise <= 1:
            raise ValueError(f"reward_noise must be in [0, 1], got {self.reward_noise}")
        if not self.importance_cap >= 1:
            raise ValueError(f"importance_cap must be at least 1, got {self.importance_cap}")
        for name, known in (
            ("aggregation", get_args(Aggregation)),
            ("kl_estimator", (*get_args(KLEstimator), None)),
            ("kl_in", ("loss", "reward")),
            ("importance_sampling", (*get_args(ImportanceLevel), None)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")


def make_config(kind: type[AgentConfig], settings: Mapping[str, Any]) -> AgentConfig:
    """A config from keyword arguments; an unknown one is an error that names the nearest."""
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}; {hint}")
    return kind(**settings)

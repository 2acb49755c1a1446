"""GRPO with four switches: a wider clip above, means over tokens, groups that differ, a penalty for length."""

from __future__ import annotations

from dataclasses import dataclass

from sppo.agents.grpo import GRPO, GRPOConfig


@dataclass(frozen=True, kw_only=True)
class DAPOConfig(GRPOConfig):
    """Settings of DAPO; each is a switch of its own, and any group method has them.

    clip_range_high lets unlikely actions grow; aggregation="token_mean", which is the default of all, lets long
    episodes weigh more; dynamic_sampling replaces groups that teach nothing. The penalty for length (overlong_buffer,
    0.2 in the paper) is off unless asked for: on control, to last until the horizon is often success itself.
    """

    clip_range_high: float | None = 0.28
    dynamic_sampling: int = 9


class DAPO(GRPO):
    """GRPO's advantages: A_i = (R_i - mean of the group) / (std of the group + 1e-6).

    Source: Yu et al. 2025, arXiv 2503.14476.
    Departs from it: refills of the batch are bounded (9, so that 10 batches are drawn at most, as in verl's recipe),
    and draw as many groups as are missing; the penalty for length is off by default.
    """

    Config = DAPOConfig

"""Which rows and steps each minibatch holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import N_INPUTS, OverRows, gradient, made_up, surrogate

from sppo.agents.batch import Experience
from sppo.agents.minibatches import minibatches, per_pass


@dataclass(frozen=True)
class Watched:
    """A loss that notes which inputs it was given."""

    memoryless: bool
    block: int = 1

    def __call__(self, batch: Experience) -> Any:
        raise AssertionError("not to be evaluated")


def numbered(lengths: list[int]) -> Experience:
    """Inputs say row and step."""
    data = made_up(lengths)
    b, t = data.traj.valid.shape
    inputs = torch.stack(torch.meshgrid(torch.arange(b), torch.arange(t + 1), indexing="ij"), -1).float()
    return replace(data, traj=replace(data.traj, inputs=inputs))


def seen(part: Experience) -> list[tuple[int, int]]:
    steps = part.traj.inputs[:, : part.traj.valid.shape[1]][part.traj.valid]
    return [(int(row), int(step)) for row, step in steps.tolist()]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    n_minibatches=st.integers(1, 5),
    batch_size=st.one_of(st.none(), st.integers(1, 12)),
    memoryless=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_pass_sees_every_step_once(
    lengths: list[int], n_minibatches: int, batch_size: int | None, memoryless: bool
) -> None:
    data, loss = numbered(lengths), Watched(memoryless)
    count = per_pass(data, loss, n_minibatches, batch_size)
    parts = list(minibatches(data, loss, 2, count, np.random.default_rng(len(lengths))))
    every = Counter((row, step) for row, length in enumerate(lengths) for step in range(length))
    assert len(parts) % 2 == 0
    half = len(parts) // 2
    for one_pass in (parts[:half], parts[half:]):
        assert Counter(step for part in one_pass for step in seen(part)) == every
    n = sum(lengths) if memoryless else len(lengths)
    sizes = [len(part) for part in parts[:half]]
    assert max(sizes) - min(sizes) <= 1, "minibatches are of equal size"
    if batch_size is None:
        assert half == min(n_minibatches, n)
    else:
        assert max(sizes) <= batch_size and half == -(-n // batch_size)


def test_passes_differ_and_repeat_with_the_generator() -> None:
    data = numbered([5] * 6)
    a, b, c = (
        [seen(part) for part in minibatches(data, Watched(True), 2, 2, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert a == b and a != c and a[:2] != a[2:]


@given(n_pairs=st.integers(1, 9), n_minibatches=st.integers(1, 5), batch_size=st.sampled_from([None, 2, 4, 7]))
@settings(max_examples=40, deadline=None)
def test_pairs_stay_together(n_pairs: int, n_minibatches: int, batch_size: int | None) -> None:
    data, loss = numbered([1] * (2 * n_pairs)), Watched(False, block=2)
    rows = []
    for part in minibatches(data, loss, 1, per_pass(data, loss, n_minibatches, batch_size), np.random.default_rng(0)):
        here = [row for row, _ in seen(part)]
        assert here[::2] == [row - 1 for row in here[1::2]] and all(row % 2 == 0 for row in here[::2])
        rows += here
    assert sorted(rows) == list(range(2 * n_pairs))


def test_pairs_stay_together_in_microbatches() -> None:
    sizes = []

    class Pairs(OverRows):
        def __call__(self, batch: Experience) -> Any:
            sizes.append(len(batch))
            assert (batch.traj.inputs[0::2, 0, 0] + 1 == batch.traj.inputs[1::2, 0, 0]).all()
            return self.loss(batch)

    data = replace(made_up([3, 1, 5, 2, 4, 4]), advantages=torch.ones(6, 5))
    rows = torch.arange(6.0)[:, None, None].expand(6, 6, N_INPUTS)
    data = replace(data, traj=replace(data.traj, inputs=rows))
    gradient(lambda policy: Pairs(surrogate(policy), block=2), data, microbatch_size=3)
    assert sizes == [2, 2, 2]


def test_microbatches_hold_so_many_steps() -> None:
    """Ordered by length: 1, 1, 2, 5, 5, 9."""
    lengths = [5, 1, 9, 2, 5, 1]
    cut: list[list[int]] = []

    class Noted(OverRows):
        def __call__(self, batch: Experience) -> Any:
            cut.append(batch.traj.lengths.tolist())
            return self.loss(batch)

    def microbatches(block: int = 1, **settings: int) -> list[list[int]]:
        cut.clear()
        gradient(lambda policy: Noted(surrogate(policy), block=block), made_up(lengths), n_epochs=1, **settings)
        return cut.copy()

    # 3 x 2 = 6 steps, padding included, and with a row of 5 it would be 4 x 5 = 20; then 2 x 5; the last by itself
    assert microbatches(microbatch_steps=10) == [[1, 1, 2], [5, 5], [9]]
    assert microbatches(microbatch_steps=5) == [[1, 1], [2], [5], [5], [9]]
    assert microbatches(microbatch_steps=1) == [[1], [1], [2], [5], [5], [9]]
    assert microbatches(microbatch_steps=10, microbatch_size=2) == [[1, 1], [2, 5], [5], [9]]
    assert microbatches(microbatch_steps=54) == [[1, 1, 2, 5, 5, 9]]
    for pairs in (microbatches(2, microbatch_steps=1), microbatches(2, microbatch_steps=20)):
        assert [len(part) % 2 for part in pairs] == [0] * len(pairs) and sum(map(len, pairs)) == 6
    assert len(microbatches(2, microbatch_steps=1)) == 3

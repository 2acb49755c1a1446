"""Credit for segments and trees: numbers worked out by hand, and what the functions refuse."""

from __future__ import annotations

import pytest
import torch

from sppo.agents.credit import group_statistics, outcome_advantage
from sppo.agents.segments import segment_advantage, segment_numbers, sibling_advantage, tree_values

VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
STARTS = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()
VALUES = torch.tensor([0.5, 0.75, 0.25, 0.5, 0.125, 1.0])


def test_segments_by_hand() -> None:
    rewards = torch.zeros(3, 5)
    rewards[0, 4] = rewards[2, 2] = 1  # outcomes 1, 0, 1
    rewards[1, 4] = 9  # padding: not read
    # Row 0: 0.75 - 0.5 for two steps, 0.25 - 0.75 for one, R - 0.25 for the last two. Row 1: R - V(s_0) = -0.5.
    # Row 2: 1 - 0.125, then R - 1 = 0.
    expected = [[0.25, 0.25, -0.5, 0.75, 0.75], [-0.5, -0.5, 0, 0, 0], [0.875, 0, 0, 0, 0]]
    assert segment_advantage(VALUES, rewards, STARTS, VALID).tolist() == expected
    assert segment_numbers(STARTS)[VALID].tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]


def test_rewards_on_the_way_belong_to_their_segment() -> None:
    rewards = torch.tensor([[1.0, 0, 2, 0, 4], [0, 0, 0, 0, 0], [0, 3, 0, 0, 0]])
    # Row 0: 1 + 0.75 - 0.5, 2 + 0.25 - 0.75, 4 - 0.25. Row 2: 1 - 0.125, 3 - 1.
    expected = [[1.25, 1.25, 1.5, 3.75, 3.75], [-0.5, -0.5, 0, 0, 0], [0.875, 2, 2, 0, 0]]
    assert segment_advantage(VALUES, rewards, STARTS, VALID).tolist() == expected


def test_segments_telescope() -> None:
    """Segment by segment, advantages add up to R - V(s_0), wherever the segments are."""
    advantages = segment_advantage(VALUES, torch.ones(3, 5), STARTS, VALID)
    assert (advantages * STARTS).sum(1).tolist() == [5 - 0.5, 2 - 0.5, 3 - 0.125]


def test_one_segment_is_the_outcome_less_the_start_value() -> None:
    starts, outcomes, values = torch.zeros(3, 5).bool(), torch.tensor([1.0, 0, 1]), torch.tensor([0.3, 0.6, 0.9])
    starts[:, 0] = True
    rewards = torch.zeros(3, 5)
    rewards[torch.arange(3), VALID.sum(1) - 1] = outcomes
    torch.testing.assert_close(
        segment_advantage(values, rewards, starts, VALID), outcome_advantage(outcomes, values, VALID)
    )


def test_segments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"values must be \(N,\) = \(6,\), one per segment, got \(5,\)"):
        segment_advantage(VALUES[:5], torch.zeros(3, 5), STARTS, VALID)
    for row, step, mark in ((1, 0, False), (1, 3, True)):
        wrong = STARTS.clone()
        wrong[row, step] = mark
        with pytest.raises(ValueError, match="starts must mark the first step of every row, and valid steps alone"):
            segment_advantage(torch.zeros(int(wrong.sum())), torch.zeros(3, 5), wrong, VALID)


# Two trees: 0 and 1 begin at one start, 2 and 3 at another; 4, 5 follow 0, 6, 7, 8 follow 3, 9, 10 follow 4.
PARENT = torch.tensor([-1, -1, -2, -2, 0, 0, 3, 3, 3, 4, 4])
RETURNS = torch.tensor([7.0, 1, 0, 7, 7, 0, 1, 1, 1, 1, 0])  # 7 where an inner node's is not read


def test_tree_by_hand() -> None:
    values = tree_values(PARENT, RETURNS)
    # V(4) = 1/2; V(0) = (1/2 + 0) / 2; V(3) = 1, all three succeed.
    assert values.tolist() == [0.25, 1, 0, 1, 0.5, 0, 1, 1, 1, 1, 0]
    # Siblings' means: 5/8 of 0 and 1, 1/2 of 2 and 3, 1/4 of 4 and 5, 1 of 6 to 8, 1/2 of 9 and 10.
    expected = [-0.375, 0.375, -0.5, 0.5, 0.25, -0.25, 0, 0, 0, 0.5, -0.5]
    assert sibling_advantage(values, PARENT).tolist() == expected
    scaled = sibling_advantage(values, PARENT, scale_by_std=True)
    # Of two siblings, either lies one standard deviation from their mean.
    assert scaled.tolist() == pytest.approx([-1, 1, -1, 1, 1, -1, 0, 0, 0, 1, -1], abs=1e-5)


def test_rounding_is_no_advantage() -> None:
    """Siblings of one value have an advantage of exactly 0, so that they can be left out."""
    v = 0.014974874371859296  # the mean of three of these is another number
    parent = torch.tensor([-1, -1, -1, -2, -2])
    advantages = sibling_advantage(torch.tensor([v, v, v, v, 2 * v], dtype=torch.float64), parent)
    assert advantages[:3].tolist() == [0, 0, 0] and (advantages[3:] != 0).all()


def test_a_tree_of_depth_one_is_a_group() -> None:
    outcomes, group = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    values = tree_values(-1 - group, outcomes)
    mean, std, _ = group_statistics(outcomes, group)
    torch.testing.assert_close(sibling_advantage(values, -1 - group), (outcomes - mean).float())
    torch.testing.assert_close(
        sibling_advantage(values, -1 - group, scale_by_std=True), ((outcomes - mean) / std).float()
    )


def test_a_node_before_its_parent() -> None:
    with pytest.raises(ValueError, match="a node must come after its parent: node 1 has parent 2"):
        tree_values(torch.tensor([-1, 2, -1]), torch.zeros(3))

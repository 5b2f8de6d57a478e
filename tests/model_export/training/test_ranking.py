"""The losses on rankings, on groups worked out by hand and against plain Python."""

import math
from collections import defaultdict
from itertools import combinations
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_export.evaluation.predict import make_predictions
from model_export.training.batches import NO_GROUP
from model_export.training.ranking import listwise_loss, margin_loss, rank_scores, ranking_loss

Kind = Literal["margin", "listwise"]
KINDS: tuple[Kind, ...] = ("margin", "listwise")
# Log-odds of shares of the top gain after they are moved 0.01 from 0 and 1.
ONE_HOT_SCORES = [math.log(x / (1 - x)) for x in (0.01, 0.15, 0.43, 0.99)]


def test_scores_of_one_hot_labels_match_those_computed_by_hand() -> None:
    assert rank_scores(torch.eye(4)).tolist() == pytest.approx(ONE_HOT_SCORES, abs=1e-5)


def test_scores_order_pairs_as_the_service_does() -> None:
    probabilities = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)
    served = make_predictions("student", probabilities.double().numpy(), None).ranking
    assert np.argsort(rank_scores(probabilities).numpy()).tolist() == np.argsort(served).tolist()


@pytest.mark.parametrize("sure_of", [0, 3], ids=["lowest", "top"])
def test_student_that_is_sure_of_an_end_still_learns(sure_of: int) -> None:
    """The log-odds have a gradient where that of the expected gain has almost vanished."""
    logits = torch.zeros(4)
    logits[sure_of] = 7.0  # a probability of 0.997
    logits.requires_grad_()
    probabilities = logits.softmax(-1)
    [gradient] = torch.autograd.grad(rank_scores(probabilities[None])[0], logits, retain_graph=True)
    [plain] = torch.autograd.grad(probabilities @ torch.tensor([0, 1 / 7, 3 / 7, 1]), logits)
    assert plain.abs().max() < 0.01
    assert gradient.abs().max() > 0.1
    assert gradient[0] < 0 < gradient[3]


def test_margin_loss_matches_a_group_computed_by_hand() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    # Margins of the student 1, 2, 1; of the target 2, 2, 0: squared differences 1, 0, 1.
    loss = margin_loss(scores, torch.tensor([2.0, 0.0, 0.0]))
    assert loss.item() == pytest.approx(2 / 3)
    [gradient] = torch.autograd.grad(loss, scores)
    # 2/3 of each example's sum of (its margin - the target's): -1 + 0, 1 + 1, 0 - 1.
    assert gradient.tolist() == pytest.approx([-2 / 3, 4 / 3, -2 / 3])


def test_listwise_loss_matches_a_group_computed_by_hand() -> None:
    # At a temperature of 2: the student gives 1/2 and 1/2, the target 3/4 and 1/4.
    scores = torch.zeros(2, requires_grad=True)
    loss = listwise_loss(scores, torch.tensor([2 * math.log(3.0), 0.0]))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    [gradient] = torch.autograd.grad(loss, scores)
    assert gradient.tolist() == pytest.approx([-0.125, 0.125])  # (1/2 - 3/4) / 2


def test_opposite_expected_gains_share_in_their_own_ratio() -> None:
    """The temperature's reason: notes with expected gains of 0.8 and 0.2 get shares of 0.8 and 0.2."""
    shares = (torch.logit(torch.tensor([0.8, 0.2])) / 2).softmax(0)
    assert shares.tolist() == pytest.approx([0.8, 0.2])


def slow_loss(kind: Kind, scores: list[float], targets: list[float], groups: list[int]) -> float:
    """Sum over groups and pairs in plain Python."""
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    total = 0.0
    for group, own in members.items():
        if group == NO_GROUP or len(own) < 2:
            continue
        if kind == "margin":
            squares = [
                (scores[i] - scores[j] - targets[i] + targets[j]) ** 2 for i, j in combinations(own, 2)
            ]
            total += len(own) * sum(squares) / len(squares)
        else:
            ours, theirs = (
                {i: math.exp(each[i] / 2) / sum(math.exp(each[j] / 2) for j in own) for i in own}
                for each in (scores, targets)
            )
            total += len(own) * sum(theirs[i] * math.log(theirs[i] / ours[i]) for i in own)
    return total / len(groups)


@given(
    st.sampled_from(KINDS),
    st.lists(
        st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(NO_GROUP, 3)), min_size=1, max_size=12
    ),
)
def test_loss_of_a_batch_equals_plain_python(kind: Kind, rows: list[tuple[float, float, int]]) -> None:
    scores, targets, groups = (list(column) for column in zip(*rows, strict=True))
    ours, theirs = (torch.tensor(column, dtype=torch.float64) for column in (scores, targets))
    found = ranking_loss(kind, ours, theirs, torch.tensor(groups)).item()
    assert found == pytest.approx(slow_loss(kind, scores, targets, groups), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_ignores_a_shift_of_all_scores_and_is_0_at_the_target(kind: Kind) -> None:
    targets, groups = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0, 0, 0])
    assert ranking_loss(kind, targets + 3, targets, groups).item() == pytest.approx(0, abs=1e-6)
    assert ranking_loss(kind, targets.flip(0), targets, groups).item() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_examples_that_are_ranked_with_no_other_get_no_gradient(kind: Kind) -> None:
    scores = torch.tensor([1.0, 2.0, 0.0, -1.0], requires_grad=True)
    loss = ranking_loss(kind, scores, torch.zeros(4), torch.tensor([0, NO_GROUP, 1, 0]))
    [gradient] = torch.autograd.grad(loss, scores)
    assert gradient[[1, 2]].tolist() == [0, 0]
    assert gradient[0] > 0 > gradient[3]  # towards equal scores

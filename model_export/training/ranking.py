"""Losses on the order of a query's pairs: the student's scores against the target's, in each group of a batch.

The score is the log-odds of what the service ranks by: the expected gain e, as a share of the top gain. With the logits z of
the grades, their probabilities p and their gains g as shares of the top gain, the derivatives by a grade's logit are

    of e:        p_k (g_k - e)
    of logit e:  p_k g_k / e - p_k (1 - g_k) / (1 - e)

The first is at most 1/4 and falls to 0 where the student is sure of any grade, so that margins of e teach little. The second
is the first divided by e (1 - e): a difference of two distributions, whose size stays near 1 where the student is wrongly sure
of the lowest or the top grade. With two grades the log-odds are the difference of their logits, as in the sources.

Both losses are 0 where the student's distribution is the target's, which is also where the grade's cross-entropy is least.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from model_export.data.pairs import GAINS

# e is first moved this far from 0 and 1: a one-hot target has finite log-odds. Beyond it the derivative does fall to 0.
_INSET = 0.01
# Two notes with expected gains of e and 1 - e then get shares in the ratio of these gains, as nDCG counts them.
_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Settings of the loss on rankings; a group has at most `group_size` examples of a query."""

    loss: Literal["margin", "listwise"]
    weight: float
    group_size: int


def rank_scores(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of the expected gain of (batch, grades) probabilities: (batch,), within +-4.6."""
    gains = torch.tensor(GAINS, dtype=probabilities.dtype, device=probabilities.device) / GAINS[-1]
    return torch.logit(_INSET + (1 - 2 * _INSET) * (probabilities @ gains))


def ranking_loss(
    kind: Literal["margin", "listwise"], scores: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """Return the loss of each example's group, averaged over the examples of a batch; 0 for those ranked with no other.

    Args:
        scores: (batch,) of the student.
        targets: (batch,) of the target.
        groups: (batch,) numbers from 0, or NO_GROUP.
    """
    loss_of = margin_loss if kind == "margin" else listwise_loss
    total = scores.new_zeros(())
    for number in range(int(groups.max()) + 1):
        members = groups == number
        if (size := int(members.sum())) > 1:
            total = total + size * loss_of(scores[members], targets[members])
    return total / len(groups)


def margin_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the squared difference of the student's margin and the target's, averaged over all pairs of a group.

    Source: margin-MSE, Hofstätter et al., arXiv 2010.02666, there for one pair per query.
    """
    # The mean of (d_i - d_j)^2 over i < j is twice the unbiased variance of d.
    return 2 * (scores - targets).var()


def listwise_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence from the target's softmax over a group to the student's; its gradient is the cross-entropy's.

    Source: ListNet's top-one probabilities, Cao et al., ICML 2007; gain as the target, Bruch, arXiv 1911.09798.
    """
    ours, theirs = ((each / _TEMPERATURE).log_softmax(0) for each in (scores, targets))
    return torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)

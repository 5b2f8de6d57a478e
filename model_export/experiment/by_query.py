"""Compares the arms on the dev queries that all seeds share, by a paired bootstrap over queries.

The intervals of `results` say how sure a gain is if the training were repeated; these say how sure it is on other queries.
Figures are averaged over the seeds in each resample. Generated data has no such queries, since each seed generates its own.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from model_export.data.pairs import GRADES
from model_export.evaluation.measures import grade_metrics, tally_confusion
from model_export.evaluation.paired_bootstrap import draw_resamples, percentile_interval, resample
from model_export.experiment.arms import SFT
from model_export.experiment.measure import ALL, NO_GRADE, Reading
from model_export.experiment.results import GAINS, Mean
from model_export.experiment.warm_up import Readings

_DRAWS, _SEED = 2000, 1
# A trace without a grade is counted as if it had one more grade, which no gold has.
_CHOICES = len(GRADES) + 1


def gains_by_query(found: Mapping[int, Mapping[str, Readings]]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Return each arm's gain over more supervised training after the last step, by split, arm and figure.

    Empty without that arm or without queries that all seeds share.
    """
    arms = next(iter(found.values()))
    last = max(arms[SFT]) if SFT in arms else 0
    if not last or ALL not in arms[SFT][last][0].splits:
        return {}

    def by_seed(arm: str, split: str) -> list[list[Reading]]:
        return [[each for each in own[arm][last] if split in each.splits] for own in found.values()]

    splits = dict.fromkeys(split for reading in arms[SFT][last] for split in reading.splits)
    return {
        split: {arm: _gains(by_seed(arm, split), by_seed(SFT, split)) for arm in arms if arm != SFT}
        for split in splits
    }


def _gains(ours: Sequence[Sequence[Reading]], others: Sequence[Sequence[Reading]]) -> dict[str, Mean]:
    """Compare readings by seed of the same pairs."""
    queries = len({reading.query for reading in ours[0]})
    # The first is the sample itself.
    resamples = np.vstack([np.ones(queries), draw_resamples(queries, _DRAWS, _SEED)])
    first, second = (_figures(each, resamples) for each in (ours, others))
    gains = {}
    for figure in GAINS:
        difference = first[figure] - second[figure]
        gains[figure] = Mean(float(difference[0]), *percentile_interval(difference[1:]))
    return gains


def _figures(by_seed: Sequence[Sequence[Reading]], resamples: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of each resample, averaged over the seeds, (resamples,) each."""
    found = [_figures_of_seed(readings, resamples) for readings in by_seed]
    return {figure: np.mean([each[figure] for each in found], axis=0) for figure in GAINS}


def _figures_of_seed(readings: Sequence[Reading], resamples: np.ndarray) -> dict[str, np.ndarray]:
    _, query_of = np.unique([each.query for each in readings], return_inverse=True)
    gold = np.array([each.gold for each in readings])
    chosen = np.array([each.grade if each.grade != NO_GRADE else _CHOICES - 1 for each in readings])
    confusion = resample(tally_confusion(query_of, gold, chosen, _CHOICES), resamples)
    pairs = resamples @ np.bincount(query_of)

    def share(facts: Sequence[bool]) -> np.ndarray:
        shares: np.ndarray = resamples @ np.bincount(query_of, facts) / pairs
        return shares

    return {
        **grade_metrics(confusion),
        "true": share([each.is_true for each in readings]),
        "consistent": share([each.is_consistent for each in readings]),
    }


def gains_to_markdown(gains: Mapping[str, Mapping[str, Mapping[str, Mean]]]) -> str:
    """Return the gains as a table; nothing if there are none."""
    if not gains:
        return ""
    rows = [
        f"| {split} | {arm} | {' | '.join(str(each) for each in of_arm.values())} |"
        for split, of_split in gains.items()
        for arm, of_arm in of_split.items()
    ]
    return "\n".join(
        [
            f"After the last step, minus `{SFT}`, averaged over the seeds; intervals by a paired bootstrap over queries:",
            "",
            f"| split | arm | {' | '.join(GAINS.values())} |",
            "|---" * (2 + len(GAINS)) + "|",
            *rows,
            "",
        ]
    )

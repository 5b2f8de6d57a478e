"""Readings whose figures a test can choose."""

from model_export.experiment.measure import NO_GRADE, Reading


def readings(
    accuracy: float, splits: tuple[str, ...], queries: int = 10, pairs: int = 100, true: float = 0.9
) -> list[Reading]:
    """Return readings of pairs of gold grade 1, spread over the queries; a wrong one does not parse."""
    right, are_true = round(accuracy * pairs), round(true * pairs)
    return [
        Reading(
            splits,
            row % queries,
            gold=1,
            grade=1 if row < right else NO_GRADE,
            right_steps=float(row < right) / 2,
            is_true=row < are_true,
            is_consistent=row < right,
        )
        for row in range(pairs)
    ]

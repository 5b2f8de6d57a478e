"""The table of test figures in a model card."""

from collections.abc import Iterator

from model_export.evaluation.evaluate import LONG_TAIL, Evaluation, format_number
from model_export.reports.report import difference_cell

# Metrics of served grades, and their titles.
_METRICS = {
    "macro_f1_decided": "macro-F1",
    "qwk_decided": "QWK",
    "ndcg_at_10": "nDCG@10",
    "ece_after": "ECE",
}


def held_out_rows(evaluation: Evaluation, main: str) -> Iterator[tuple[str, ...]]:
    """Yield the header and, on all test pairs and on each source, a row for each system: figures as served, and `main` minus it."""
    yield (
        "test pairs",
        "system",
        *_METRICS.values(),
        *(f"{title}: difference" for title in _METRICS.values()),
    )
    for split in evaluation.sizes:
        if split.endswith(LONG_TAIL):
            continue
        by_control = evaluation.differences_on(split)
        for system, splits in evaluation.rows.items():
            differences = by_control[system][main] if system in by_control else None
            yield (
                f"{split}: {evaluation.sizes[split]['pairs']:,}",
                system,
                *(format_number(splits[split][metric]) for metric in _METRICS),
                *(difference_cell(differences[metric]).text if differences else "" for metric in _METRICS),
            )

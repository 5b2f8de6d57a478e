import json

import numpy as np
import pytest

from model_export.data.pairs import Pair
from model_export.evaluation.evaluate import (
    Evaluation,
    EvaluationError,
    Predictions,
    evaluate,
    format_table,
)
from model_export.evaluation.judged import Judged
from model_export.evaluation.paired_bootstrap import COMPARED_METRICS
from service.contract.prompt import Note


def pair(number: int, query: str, label: int, source: str = "shop") -> Pair:
    return Pair(f"p{number}", query, Note("", f"note {number}"), label, source, "general-1")


def predict(
    system: str, grades: list[int], sure: float = 0.7, parsed: list[bool] | None = None
) -> Predictions:
    """Make a system that gives each pair its grade with probability `sure` and ranks by grade."""
    probabilities = np.full((len(grades), 4), (1 - sure) / 3)
    probabilities[np.arange(len(grades)), grades] = sure
    return Predictions(
        system, probabilities, np.array(grades, dtype=float), None if parsed is None else np.array(parsed)
    )


GOLD = [0, 3, 1, 2, 2, 0, 3, 3]
PAIRS = [pair(number, f"query {number // 2}", label) for number, label in enumerate(GOLD)]
PERFECT = predict("label_only_sft", GOLD)
REVERSED = predict("student", [3 - grade for grade in GOLD], parsed=[True, False] * 4)


def measure(*systems: Predictions, controls: list[str] | None = None) -> Evaluation:
    return evaluate(systems, PAIRS, frozenset(), controls=controls or [], seed=1)


def test_perfect_system_has_the_maximum_of_each_metric() -> None:
    row = measure(PERFECT).rows["label_only_sft"]["all"]
    assert [row[metric] for metric in ("accuracy", "macro_f1", "qwk", "ndcg_at_10", "auc")] == [1.0] * 5
    assert row["ece_before"] == pytest.approx(0.3)
    # The temperature is fitted on other queries.
    assert row["ece_after"] == pytest.approx(0.0, abs=1e-6)


def test_parse_rate_is_none_for_a_system_without_traces() -> None:
    rows = measure(PERFECT, REVERSED).rows
    assert rows["student"]["all"]["parse_rate"] == 0.5
    assert rows["label_only_sft"]["all"]["parse_rate"] is None


@pytest.mark.parametrize(
    ("systems", "winner", "sentence"),
    [
        pytest.param(
            [PERFECT, REVERSED],
            "label_only_sft",
            "best is label_only_sft (1.000); student is 1.000 below label_only_sft (95 %",
            id="control wins",
        ),
        pytest.param(
            [PERFECT, predict("student", GOLD)],
            "label_only_sft",
            "best is label_only_sft (1.000); student is equal to label_only_sft (95 % interval 0.000 to 0.000)",
            id="first of equal systems wins",
        ),
        pytest.param(
            [predict("label_only_sft", [0] * 8), predict("student", GOLD)],
            "student",
            "best is student (1.000); student is 0.750 above label_only_sft (95 %",
            id="student wins over the main control",
        ),
        pytest.param(
            [predict("label_only_sft", [0] * 8), predict("rl", GOLD), predict("student", [1] * 8)],
            "rl",
            "best is rl (1.000); student is 0.875 below rl (95 % interval -1.000 to -0.625); student is 0.125",
            id="both the winner and the main control are named",
        ),
    ],
)
def test_winner_s_sentence_compares_the_student(
    systems: list[Predictions], winner: str, sentence: str
) -> None:
    evaluation = measure(*systems, controls=["label_only_sft"])
    found = evaluation.winners["accuracy"]
    assert (found.system, found.is_control) == (winner, winner == "label_only_sft")
    assert found.sentence.startswith(f"accuracy: {sentence}")
    assert found.sentence in format_table(evaluation)


def test_differences_cover_each_control() -> None:
    evaluation = measure(PERFECT, predict("bm25", [0] * 8), REVERSED, controls=["label_only_sft", "bm25"])
    difference = evaluation.differences["label_only_sft"]["student"]["accuracy"]
    assert (difference.difference, difference.low, difference.high) == (-1.0, -1.0, -1.0)
    assert difference.excludes_zero
    assert set(evaluation.differences["bm25"]) == {"label_only_sft", "student"}
    assert set(evaluation.differences["bm25"]["student"]) == set(COMPARED_METRICS)


def test_default_controls_are_those_among_the_systems() -> None:
    evaluation = evaluate([predict("bm25", GOLD), REVERSED, PERFECT], PAIRS, frozenset(), seed=1)
    assert evaluation.controls == ("label_only_sft", "bm25")


def test_splits_are_the_long_tail_and_each_source() -> None:
    pairs = [*PAIRS, pair(8, "query 0", 1, source="forum"), pair(9, "query 0", 1, source="forum")]
    perfect = predict("label_only_sft", [*GOLD, 1, 1])
    evaluation = evaluate([perfect], pairs, frozenset({"p0", "p1", "p2"}), controls=[], seed=1)
    assert evaluation.sizes == {
        "all": {"pairs": 10, "queries": 5, "ranked_queries": 3},
        "long_tail": {"pairs": 3, "queries": 2, "ranked_queries": 1},
        "forum": {"pairs": 2, "queries": 1, "ranked_queries": 0},
        "shop": {"pairs": 8, "queries": 4, "ranked_queries": 3},
        "shop_long_tail": {"pairs": 3, "queries": 2, "ranked_queries": 1},
    }


def test_single_source_is_not_a_split() -> None:
    assert list(measure(PERFECT).sizes) == ["all"]


def test_undefined_metrics_are_none_and_json_has_no_nan() -> None:
    pairs = [pair(number, f"query {number}", 1) for number in range(4)]
    systems = [predict("label_only_sft", [1] * 4), predict("student", [1] * 4)]
    evaluation = evaluate(systems, pairs, frozenset(), controls=["label_only_sft"], seed=1)
    row = evaluation.rows["student"]["all"]
    assert (row["qwk"], row["ndcg_at_10"], row["auc"]) == (None, None, None)
    assert evaluation.differences["label_only_sft"]["student"]["qwk"].low is None
    assert "qwk" not in evaluation.winners
    as_json = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    none = {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert as_json["differences"]["label_only_sft"]["student"]["accuracy"] == none


def test_same_seed_gives_the_same_evaluation() -> None:
    once, again = (measure(PERFECT, REVERSED, controls=["label_only_sft"]) for _ in range(2))
    assert once == again


def test_same_query_in_two_sources_counts_as_two() -> None:
    pairs = [pair(0, "a", 1), pair(1, "a", 1, source="forum"), pair(2, "a", 0)]
    assert Judged.of(pairs).query_of.tolist() == [0, 1, 0]


def test_table_has_a_dash_for_undefined_metrics() -> None:
    table = format_table(measure(PERFECT))
    heading, titles, line, *_ = table.splitlines()
    assert heading == "all: 8 pairs, 4 queries (3 for nDCG)"
    assert titles.split()[:3] == ["system", "accuracy", "macro-F1"]
    assert line.split()[0] == "label_only_sft"
    assert line.split()[-1] == "–"


@pytest.mark.parametrize(
    ("systems", "pairs", "controls", "message"),
    [
        ([], PAIRS, [], "one or more systems"),
        ([PERFECT, PERFECT], PAIRS, [], "distinct names"),
        ([PERFECT], PAIRS, ["bm25"], r"controls \['bm25'\] are unknown"),
        ([PERFECT], PAIRS[:2], [], "two or more dev queries, and there are 1"),
        ([PERFECT], PAIRS[:4], [], "don't fit 4 dev pairs"),
        ([Predictions("x", PERFECT.probabilities[:, :3], PERFECT.ranking)], PAIRS, [], "labels up to 3"),
        ([Predictions("x", PERFECT.probabilities * 2, PERFECT.ranking)], PAIRS, [], "sum to 1"),
        ([Predictions("x", PERFECT.probabilities, PERFECT.ranking * np.nan)], PAIRS, [], "must be finite"),
        ([predict("x", [1, 1])], [pair(0, "a", 1, "all"), pair(1, "b", 1)], [], "can't be named 'all'"),
    ],
)
def test_invalid_systems_or_pairs_are_refused(
    systems: list[Predictions], pairs: list[Pair], controls: list[str], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(systems, pairs, frozenset(), controls=controls, seed=1)

from model_export.evaluation.evaluate import evaluate
from model_export.reports.held_out_table import held_out_rows
from tests.model_export.reports.made_systems import PAIRS, predict


def test_each_source_has_a_row_for_each_system_and_the_differences_to_the_others() -> None:
    systems = [predict("bm25", 2), predict("mine", 7)]
    found = evaluate(systems, PAIRS, frozenset({"p0", "p1"}), controls=["bm25"], seed=1, draws=50)
    header, *rows = held_out_rows(found, "mine")
    assert header[:3] == ("test pairs", "system", "macro-F1")
    assert header[6:] == tuple(f"{title}: difference" for title in header[2:6])
    assert [row[:2] for row in rows] == [
        (pairs, system) for pairs in ("all: 48", "forum: 24", "shop: 24") for system in ("bm25", "mine")
    ]
    assert all(len(row) == len(header) for row in rows)
    bm25, mine = rows[:2]
    assert mine[6:] == ("",) * 4
    gain = found.differences["bm25"]["mine"]["macro_f1_decided"]
    assert bm25[6].startswith(f"{gain.difference:+.3f} [")

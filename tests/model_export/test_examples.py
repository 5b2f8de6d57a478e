import json
from collections import Counter, defaultdict
from pathlib import Path

from service.contract.probes import ProbeNote

EXAMPLES = Path(__file__).parents[2] / "examples"


def read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def test_pairs_are_graded_notes_of_twelve_queries() -> None:
    grades: dict[str, list[int]] = defaultdict(list)
    for pair in read("pairs.jsonl"):
        assert set(pair) == {"id", "query", "note", "label"}
        ProbeNote.model_validate(pair["note"])
        grades[str(pair["query"])].append(int(str(pair["label"])))
    assert len(grades) == 12
    assert all(len(found) == 5 and {0, 3} <= set(found) <= {0, 1, 2, 3} for found in grades.values())


def test_notes_are_twenty_for_one_query() -> None:
    notes = read("notes.jsonl")
    assert len(notes) == 20
    assert all(set(note) == {"id", "title", "body"} and note["body"] for note in notes)


def test_ids_are_distinct() -> None:
    for name in ("pairs.jsonl", "notes.jsonl"):
        assert Counter(row["id"] for row in read(name)).most_common(1)[0][1] == 1

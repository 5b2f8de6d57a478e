"""Each kind of traffic has the distribution that it promises."""

import itertools
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from load_tests.bench.peer import Asked
from load_tests.bench.workloads import (
    Repetition,
    Shape,
    cold,
    mean_prompt_tokens,
    new_notes,
    render,
    replay,
    take,
    zipf,
    zipf_ranks,
)
from service.contract.checkpoint import Checkpoint


def taken(traffic: Iterable[Asked], count: int) -> list[Asked]:
    return list(itertools.islice(traffic, count))


def test_cold_traffic_repeats_no_query_no_note_and_no_id() -> None:
    asked = taken(cold("1", Shape(notes=7)), 300)
    assert len({each.query for each in asked}) == 300
    notes = [note for each in asked for note in each.notes]
    assert len({note["body"] for note in notes}) == len({note["id"] for note in notes}) == 300 * 7


def test_traffic_depends_on_the_seed_only() -> None:
    for make in (cold, lambda seed, shape: zipf(seed, shape, Repetition(queries=9, notes=30))):
        first, again, other = (taken(make(seed, Shape(notes=3)), 20) for seed in ("a", "a", "b"))
        assert first == again != other


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_ranks_follow_zipfs_law(exponent: float) -> None:
    ranks = zipf_ranks(random.Random(5), 2_000, exponent)
    counts = Counter(itertools.islice(ranks, 100_000))
    # The slope of log frequency over log rank is the exponent; only frequent ranks have reliable counts.
    xs = [math.log(rank + 1) for rank in range(30)]
    ys = [math.log(counts[rank]) for rank in range(30)]
    assert -statistics.linear_regression(xs, ys).slope == pytest.approx(exponent, abs=0.06)
    assert max(counts) < 2_000


def test_zipf_draws_queries_and_distinct_notes_independently() -> None:
    asked = taken(zipf("3", Shape(notes=2), Repetition(exponent=1, queries=50, notes=200)), 6_000)
    assert all(len({note["id"] for note in each.notes}) == 2 for each in asked)
    [(query, _)] = Counter(each.query for each in asked).most_common(1)
    firsts = Counter(each.notes[0]["id"] for each in asked)
    [(note, times)] = firsts.most_common(1)
    with_query = [each for each in asked if each.query == query]
    share = sum(each.notes[0]["id"] == note for each in with_query) / len(with_query)
    assert share == pytest.approx(times / len(asked), abs=0.04)


def test_zipf_refuses_requests_with_more_notes_than_exist() -> None:
    with pytest.raises(ValueError, match="more than 5"):
        next(zipf("1", Shape(notes=6), Repetition(notes=5)))


def test_note_lengths_have_the_given_mean_and_a_long_tail() -> None:
    notes = list(itertools.islice(new_notes(random.Random(2), 90), 3_000))
    words = [len(f"{note['title']} {note['body']}".split()) for note in notes]
    # A word has 1.03 tokens.
    assert statistics.fmean(words) * 1.03 == pytest.approx(90, rel=0.05)
    assert statistics.median(words) < statistics.fmean(words)
    assert max(words) > 3 * statistics.fmean(words)


def test_prompts_equal_the_service_s(checkpoint: Checkpoint) -> None:
    asked = Asked(
        "quiet  cafes", ({"id": "a", "title": None, "body": "x"}, {"id": "b", "title": "T", "body": "y\n"})
    )
    request = render(checkpoint.renderer, asked)
    texts = [checkpoint.tokenizer.decode(prompt) for prompt in request.prompts]
    # Texts are canonical, and an empty title has no line.
    assert texts[0].endswith("\nNote: x\nQuery: quiet cafes<|im_end|>\nGrade: ")
    assert "Title" not in texts[0]
    assert "\nTitle: T\nNote: y\nQuery" in texts[1]
    assert mean_prompt_tokens([request]) == statistics.fmean(map(len, request.prompts))


def test_replay_reads_a_file_in_order(tmp_path: Path, checkpoint: Checkpoint) -> None:
    rows = [
        {"query": f"q{n}", "notes": [{"id": 1, "body": "b"}, {"id": "2", "title": "t", "body": "c"}]}
        for n in (2, 1)
    ]
    file = tmp_path / "traffic.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    requests = take(checkpoint.renderer, replay(file), 10)
    assert [request.query for request in requests] == ["q2", "q1"]
    assert requests[0].notes[0] == {"id": "1", "title": None, "body": "b"}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"query": "q"}',
        '{"query": "q", "notes": []}',
        '{"query": " ", "notes": [{"id": "1", "body": ""}]}',
    ],
)
def test_replay_names_the_invalid_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text(f'{{"query": "q", "notes": [{{"id": "1", "body": "b"}}]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        list(replay(file))

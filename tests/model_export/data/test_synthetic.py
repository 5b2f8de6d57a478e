from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.pairs import (
    GRADES,
    DataError,
    Finding,
    Pair,
    check_split,
)
from model_export.data.synthetic import UNSEEN, SyntheticData, generate, tasks
from service.contract.prompt import Note
from service.contract.trace import parse_steps, write_step

CRITERIA = tasks("three")[0].criteria
STEPS = CRITERIA.steps


@pytest.fixture(scope="module")
def six() -> SyntheticData:
    """Data of the experiment's size."""
    return generate(seed=7, train_queries=600, dev_queries=80, notes_per_query=12, task="six")


@pytest.fixture(scope="module")
def data() -> SyntheticData:
    """Data of about the tiny recipe's size."""
    return generate(seed=7, train_queries=600, dev_queries=90, notes_per_query=8)


def words_of(pairs: Sequence[Pair]) -> Counter[str]:
    return Counter(word for query in sorted({pair.query for pair in pairs}) for word in query.split())


def grade_by_criteria(pair: Pair) -> int:
    """Grade the pair as a reader of query and note would, without the findings."""
    colour, thing, limit = pair.query.split()
    facts = [fact.split() for fact in pair.note.body.split(" . ")]
    if pair.note.title.split()[-1] != thing:
        return 0
    return 1 + (["colour", colour] in facts) + (["city", limit] in facts or ["day", limit] in facts)


def test_same_seed_gives_the_same_data(data: SyntheticData) -> None:
    assert generate(7, 600, 90, 8) == data
    other = generate(8, 600, 90, 8)
    assert other.train != data.train
    assert other.dev != data.dev


def test_data_does_not_change_between_versions() -> None:
    first = generate(seed=1, train_queries=1, dev_queries=1, notes_per_query=1).train[0]
    assert (first.query, first.note) == (
        "red lamp friday",
        Note("new lamp", "day friday . city lisbon . colour red . also red lamp wednesday"),
    )


def test_sizes_and_ids(data: SyntheticData) -> None:
    assert [pair.id for pair in data.train] == [f"synthetic-train-{i:05}" for i in range(4_800)]
    assert [pair.id for pair in data.dev] == [f"synthetic-dev-{i:05}" for i in range(720)]


def test_grade_follows_from_the_criteria(data: SyntheticData) -> None:
    assert all(pair.label == grade_by_criteria(pair) for pair in (*data.train, *data.dev))


def test_findings_follow_from_the_criteria(data: SyntheticData) -> None:
    for pair in data.train:
        topic, attribute, constraint = (pair.findings[step].text.split() for step in STEPS)
        colour, thing, limit = pair.query.split()
        assert topic == [thing, pair.note.title.split()[-1], "yes" if pair.label else "no"]
        assert [attribute[0], constraint[0]] == [colour, limit]
        assert all(
            (asked == found) == (verdict == "yes") for asked, found, verdict in (attribute, constraint)
        )
        if pair.label:
            assert pair.label == 1 + (attribute[2] == "yes") + (constraint[2] == "yes")


def test_grade_so_far_is_the_highest_still_possible(data: SyntheticData) -> None:
    for pair in data.train:
        possible, findings = GRADES[-1], [pair.findings[step] for step in STEPS]
        for step, finding in zip(STEPS, findings, strict=True):
            if finding.text.endswith("no"):
                possible = 0 if step == "topic" else max(possible - 1, 0)
            assert finding.grade == possible
        assert findings[-1].grade == pair.label


def test_findings_fit_the_grammar_of_traces(data: SyntheticData) -> None:
    for pair in data.dev:
        found = [(step, pair.findings[step]) for step in CRITERIA.steps]
        trace = "".join(write_step(step, finding.text, finding.grade) for step, finding in found)
        steps, end = parse_steps(trace, top_grade=max(GRADES))
        assert end == len(trace)
        assert [(step.criterion, Finding(step.finding, step.grade)) for step in steps] == found


@settings(max_examples=20)
@given(st.integers(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_grades_of_each_query_are_balanced_and_notes_distinct(
    seed: int, train_queries: int, dev_queries: int, notes_per_query: int
) -> None:
    data = generate(seed, train_queries, dev_queries, notes_per_query)
    check_split(data.train, data.dev)
    by_query = defaultdict(list)
    for pair in (*data.train, *data.dev):
        by_query[pair.query].append(pair)
    assert len(by_query) == train_queries + dev_queries
    for pairs in by_query.values():
        counts = Counter(pair.label for pair in pairs)
        assert max(counts.values()) - min(counts[grade] for grade in GRADES) <= 1
        assert len({pair.note for pair in pairs}) == notes_per_query


def words_in_common(pair: Pair) -> tuple[int, ...]:
    """Count each word of the query in the note."""
    return tuple(f"{pair.note.title} {pair.note.body}".split().count(word) for word in pair.query.split())


def repeats_in_note(pair: Pair) -> tuple[int, ...]:
    """Count each of the offer's values in the note."""
    kinds = ("colour", "city", "day")
    words = f"{pair.note.title} {pair.note.body}".split()
    return tuple(words.count(word) for word in (words[1], *(words[words.index(kind) + 1] for kind in kinds)))


@pytest.mark.parametrize(("view", "bound"), [(words_in_common, 0.75), (repeats_in_note, 0.35)])
def test_shortcuts_do_not_find_the_grade(
    view: Callable[[Pair], tuple[int, ...]], bound: float, data: SyntheticData
) -> None:
    by_view: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for pair in data.train:
        by_view[view(pair)][pair.label] += 1
    best = {seen: grades.most_common(1)[0][0] for seen, grades in by_view.items()}
    right = sum(best.get(view(pair)) == pair.label for pair in data.dev)
    assert right / len(data.dev) < bound


def test_long_tail_words_are_rare_but_trained_on(data: SyntheticData) -> None:
    seen = words_of(data.train)
    tail = [pair for pair in data.dev if pair.id in data.long_tail]
    rest = [pair for pair in data.dev if pair.id not in data.long_tail]
    assert len(tail) == 240
    assert not {pair.query for pair in tail} & {pair.query for pair in rest}
    assert mean_seen(tail, seen) < mean_seen(rest, seen) / 1.5
    assert min(seen[word] for word in words_of(data.dev)) >= 5


def mean_seen(pairs: Sequence[Pair], seen: Counter[str]) -> float:
    queries = {pair.query for pair in pairs}
    return sum(seen[word] for query in queries for word in query.split()) / len(queries)


@pytest.mark.parametrize("sizes", [(0, 5, 8), (5, 0, 8), (5, 5, 0), (5, 5, 65)])
def test_sizes_out_of_range_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="need 1 "):
        generate(0, *sizes)


def test_more_queries_than_there_are_wishes_are_refused() -> None:
    with pytest.raises(DataError, match="10004 synthetic queries: there are at most 5,472"):
        generate(0, 9_999, 5, 8)


def test_repeated_note_is_drawn_again() -> None:
    data = generate(seed=5, train_queries=30, dev_queries=1, notes_per_query=64)  # this seed draws one twice
    assert len({(pair.query, pair.note) for pair in data.train}) == len(data.train) == 30 * 64


def test_all_wishes_can_be_drawn() -> None:
    data = generate(seed=3, train_queries=5_000, dev_queries=472, notes_per_query=1)
    assert len({pair.query for pair in (*data.train, *data.dev)}) == 24 * 12 * (12 + 7)


def test_six_steps_are_graded_by_the_number_of_misses(six: SyntheticData) -> None:
    steps = {task.criteria.name: task.criteria.steps for task in tasks("six")}
    for pair in (*six.train, *six.dev):
        assert list(pair.findings) == list(steps[pair.criteria])
        facts = dict(fact.split(maxsplit=1) for fact in pair.note.body.split(" . "))
        first, thing, *others = pair.query.split()
        wished = zip(steps[pair.criteria][1:], (first, *others), strict=True)
        misses = sum(facts[kind] != value for kind, value in wished)
        half = (len(others) + 1) / 2
        graded = 3 if misses == 0 else 2 if misses <= half else 1
        assert pair.label == (graded if pair.note.title.split()[-1] == thing else 0)


def test_grade_so_far_of_six_steps_never_rises_and_ends_on_the_label(six: SyntheticData) -> None:
    for pair in six.train:
        grades = [finding.grade for finding in pair.findings.values()]
        assert grades == sorted(grades, reverse=True)
        assert grades[-1] == pair.label


def test_a_wrong_step_often_leaves_the_grade_as_it_is(six: SyntheticData) -> None:
    """Else an outcome reward would already judge every step."""
    whole = [pair for pair in six.train if pair.criteria == "six" and pair.label]
    lucky = sum(
        pair.label == 3 - (misses > 0) - (misses > 2)
        for pair in whole
        for misses in [sum(finding.text.endswith("no") for finding in pair.findings.values()) + 1]
    )
    assert lucky / len(whole) > 0.25


def test_unseen_criteria_are_measured_and_not_trained_on(six: SyntheticData) -> None:
    trained, measured = ({pair.criteria for pair in pairs} for pairs in (six.train, six.dev))
    assert measured - trained == UNSEEN
    assert len(trained) == 1 + 21
    of_unseen = [pair for pair in six.dev if pair.source in UNSEEN]
    assert len({pair.query for pair in of_unseen}) == 40
    assert not six.long_tail & {pair.id for pair in of_unseen}
    check_split(six.train, six.dev)


@pytest.mark.parametrize("view", [words_in_common])
def test_words_in_common_do_not_find_the_grade_of_six_steps(
    view: Callable[[Pair], tuple[int, ...]], six: SyntheticData
) -> None:
    by_view: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for pair in six.train:
        by_view[view(pair)][pair.label] += 1
    best = {seen: grades.most_common(1)[0][0] for seen, grades in by_view.items()}
    right = sum(best.get(view(pair)) == pair.label for pair in six.dev)
    assert right / len(six.dev) < 0.75

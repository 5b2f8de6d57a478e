import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_export.data.mine import Mined, MinedPair, mine, read_mined, write_mined
from model_export.data.pairs import UNJUDGED, Pair, fold_query, query_hash
from service.contract.prompt import Note
from service.contract.text import canonicalize
from tests.tiny_teacher import micro_recipe

COLOURS = ("red", "blue", "green", "white", "black", "amber")
THINGS = ("lamp", "chair", "bike", "coat", "tent", "drum", "clock", "table")


def note(colour: str, thing: str) -> Note:
    return Note(f"{colour} {thing}", f"a {thing} that is {colour} and other things")


# Each of 8 queries is judged with the 6 notes of its thing, of 48.
TRAIN = [
    Pair(f"{colour}-{thing}", f"good {thing}", note(colour, thing), 2, "shop", "product-2")
    for thing in THINGS
    for colour in COLOURS
]
UNTITLED = [replace(pair, note=Note("", pair.note.body)) for pair in TRAIN]
TIERS = ("hard", "medium", "random")
ALL_RANDOM: dict[str, Any] = {"hard": 0, "medium": 0, "random": 1}


def mined(
    train: Sequence[Pair] = TRAIN, measured: Sequence[str] = (), seed: int = 1, **config: Any
) -> list[Mined]:
    recipe = micro_recipe(
        seed=seed, stack={"teachers": ["lexical"]}, unlabelled={"pairs": 200, "encoder": "", **config}
    )
    return mine(train, {query_hash(query) for query in measured}, recipe, None, lambda *_: None)


def pairs_of(found: Sequence[Mined]) -> list[Pair]:
    return [each.pair for source in found for each in source.pairs]


def with_tier(found: Sequence[Mined], tier: str) -> list[MinedPair]:
    return [each for source in found for each in source.pairs if each.found == tier]


def text(pair: Pair) -> tuple[str, str]:
    return fold_query(pair.query), canonicalize(f"{pair.note.title} {pair.note.body}")


@pytest.mark.parametrize("train", [TRAIN, UNTITLED])
def test_pairs_are_new_unjudged_and_occur_once(train: list[Pair]) -> None:
    found = pairs_of(mined(train, pairs=2000))
    assert len({text(pair) for pair in found}) == len({pair.id for pair in found}) == len(found) > 300
    assert not {text(pair) for pair in found} & {text(pair) for pair in train}
    assert {(pair.label, pair.source, pair.criteria) for pair in found} == {(UNJUDGED, "shop", "product-2")}
    assert {pair.note for pair in found} <= {pair.note for pair in train}


def test_note_that_is_judged_under_another_title_is_not_mined() -> None:
    again = replace(TRAIN[0], id="again", query="tea", note=Note("", " ".join(text(TRAIN[0])[1:])))
    found = {text(pair) for pair in pairs_of(mined([*TRAIN, again], pairs=2000))}
    assert text(TRAIN[0]) not in found
    assert text(again) not in found


def test_dev_and_test_queries_are_never_mined() -> None:
    measured = ["Good Lamp", "RED chair"]
    assert {"good lamp", "red chair"} <= {pair.query for pair in pairs_of(mined(pairs=2000))}
    [found] = mined(measured=measured, pairs=2000)
    assert not {fold_query(pair.query) for pair in pairs_of([found])} & {"good lamp", "red chair"}
    assert found.refused == {"training query is in dev or test": 1, "title is a dev or test query": 1}


def test_hard_notes_are_the_nearest_medium_ones_follow_and_random_ones_are_beyond() -> None:
    words = [f"w{number}" for number in range(12)]
    # Note n shares n words with the query, for n up to 12, and the rest none: 12 ranks, the nearer half.
    notes = [" ".join([*words[:shared], *(f"x{n}" for n in range(12 - shared))]) for shared in range(13)]
    notes += [f"y{n} z" for n in range(12)]
    train = [Pair(str(n), "other", Note("", body), 1, "shop", "product-2") for n, body in enumerate(notes)]
    train.append(replace(train[0], id="query", query=" ".join(words)))
    found = mined(train, pairs=20, titles_share=0)
    hard, medium, random = (
        [notes.index(each.pair.note.body) for each in with_tier(found, f"query, {tier}")] for tier in TIERS
    )
    assert hard == list(range(12, 12 - len(hard), -1))
    assert 0 < min(medium) <= max(medium) < min(hard)
    assert min(random) > 12


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.25, 0.25, 0.5)])
def test_tiers_have_their_shares(shares: tuple[float, float, float]) -> None:
    # Every query shares a word with every note, so that no tier lacks notes.
    train = [replace(pair, query=f"{pair.query} that is") for pair in TRAIN]
    config: dict[str, Any] = dict(zip(TIERS, shares, strict=True))
    found = mined(train, pairs=100, titles_share=0, **config)
    counts = Counter(each.found for each in found[0].pairs)
    assert [counts[f"query, {tier}"] for tier in TIERS] == [
        pytest.approx(100 * share, abs=12) for share in shares
    ]


def test_title_is_paired_with_its_own_note_unless_the_note_is_only_the_title() -> None:
    assert all(each.pair.query == each.pair.note.title for each in with_tier(mined(), "title, own"))
    titles = {each.pair.query for each in mined()[0].pairs if each.found.startswith("title")}
    assert {each.pair.query for each in with_tier(mined(), "title, own")} == titles
    bare = [replace(pair, note=Note(pair.note.title, "")) for pair in TRAIN]
    assert with_tier(mined(bare), "title, hard")
    assert not with_tier(mined(bare), "title, own")


@pytest.mark.parametrize(("share", "of_titles"), [(0.0, 0), (0.5, 100), (1.0, 200)])
def test_titles_have_their_share(share: float, of_titles: int) -> None:
    [found] = mined(titles_share=share, **ALL_RANDOM)
    assert sum(each.found.startswith("title") for each in found.pairs) == of_titles
    # 192 is the most that 8 queries can give.
    assert len(found.pairs) == (192 if share == 0 else 200)


def test_titles_make_up_for_queries_and_queries_for_titles() -> None:
    [few_queries] = mined(TRAIN[:12], titles_share=0.1, **ALL_RANDOM)
    [no_queries] = mined(measured=[pair.query for pair in TRAIN], **ALL_RANDOM)
    [no_titles] = mined(measured=[pair.note.title for pair in TRAIN], **ALL_RANDOM)
    # Two queries can have a pair for each of six ranks.
    assert sum(each.found.startswith("query") for each in few_queries.pairs) == 12
    assert {each.found for each in no_queries.pairs} == {"title, own", "title, random"}
    assert {each.found for each in no_titles.pairs} == {"query, random"}
    assert len(no_titles.pairs) == 192


def test_query_has_at_most_24_pairs_and_a_title_8() -> None:
    train = [replace(TRAIN[0], id=str(n), note=Note(f"title {n} of many", f"body {n}")) for n in range(200)]
    train.append(replace(TRAIN[0], id="other", query="other"))
    [found] = mined(train, pairs=100, **ALL_RANDOM)
    counts = Counter(each.pair.query for each in found.pairs)
    assert counts.pop("other") == 24
    # 52 of 100 are left for titles, because the query that is judged with all notes counts too.
    assert sorted(counts.values()) == [7, 7, 7, 7, 8, 8, 8]


def test_sources_have_shares_by_the_exponent_and_their_own_notes() -> None:
    forum = [
        replace(
            pair, id=f"f-{pair.id}", source="forum", criteria="forum-1", note=Note("", f"how {number} of all")
        )
        for number, pair in enumerate(TRAIN[:12])
    ]
    found = mined([*TRAIN, *forum], pairs=60, source_exponent=0.5, **ALL_RANDOM)
    assert [(each.source.name, len(each.pairs)) for each in found] == [("shop", 40), ("forum", 20)]
    assert {(pair.source, pair.criteria, pair.note.body.startswith("how")) for pair in pairs_of(found)} == {
        ("shop", "product-2", False),
        ("forum", "forum-1", True),
    }


def test_seed_chooses_the_pairs_and_text_the_ids() -> None:
    first, again, other = (pairs_of(mined(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    ids = {text(pair): pair.id for pair in first}
    shared = [pair for pair in other if text(pair) in ids]
    assert shared
    assert all(pair.id == ids[text(pair)] for pair in shared)
    assert all(re.fullmatch(r"mined-[0-9a-f]{12}", id_) for id_ in ids.values())


def test_chinese_notes_are_ranked_by_their_words() -> None:
    train = [
        Pair(f"{thing}{use}", query, Note("", f"{thing}{use}说明"), 1, "zh", "general-1")
        for thing in ("感冒", "手机", "台灯", "雨伞")
        for use, query in (("治疗", f"{thing}怎么样"), ("价格", f"{thing}怎么样"), ("保养", "别的问题"))
    ]
    found = mined(train, pairs=50, titles_share=0, hard=1, medium=0, random=0)
    assert {(pair.query, pair.note.body) for pair in pairs_of(found)} == {
        (f"{thing}怎么样", f"{thing}保养说明") for thing in ("感冒", "手机", "台灯", "雨伞")
    }


def test_source_with_one_note_gives_no_pairs(tmp_path: Path) -> None:
    found = mined(TRAIN[:1])
    assert [each.pairs for each in found] == [()]
    write_mined(tmp_path, found)
    assert read_mined(tmp_path) == []


def test_pairs_are_read_back_as_they_were_mined(tmp_path: Path) -> None:
    forum = [replace(pair, id=f"f-{pair.id}", source="forum", criteria="forum-1") for pair in TRAIN]
    found = mined([*TRAIN, *forum])
    write_mined(tmp_path, found)
    assert read_mined(tmp_path) == pairs_of(found)


def test_titles_keep_to_the_limit_of_their_own_source() -> None:
    tight = {
        "name": "shop",
        "train": "t",
        "dev": "d",
        "limits": {"max_query_tokens": 9, "max_note_tokens": 9},
    }
    own = {"synthetic": None, "sources": [tight]}
    recipe = micro_recipe(stack={"teachers": ["lexical"]}, unlabelled={"pairs": 200, "encoder": ""}, data=own)
    [found] = mine(TRAIN, set(), recipe, None, lambda *_: None)
    titles = {note(colour, thing).title for colour in COLOURS for thing in THINGS}
    assert found.refused["title is too long"] == sum(len(title) > 8 for title in titles)

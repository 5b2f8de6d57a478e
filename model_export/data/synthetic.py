"""Data that the project generates: wishes and offers whose grade follows from stated criteria.

A wish names a thing and a value for each further step of its task. An offer names a thing and a value of every kind, and
other values besides, so that shared words alone do not give the grade away.

Two tasks: `three` steps for the tiny recipe, `six` for the experiment with the step mask. In `six` the grade is a
many-to-one function of the steps, so that a wrong step often leads to the right answer, and some wishes ask for fewer steps:
those of `unseen` sources for combinations that no training wish asks for.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain, combinations, cycle, islice, product
from typing import Literal

from model_export.data.long_tail import long_tail_ids
from model_export.data.pairs import GRADES, DataError, Finding, Pair
from service.contract.manifest import Criteria
from service.contract.prompt import Note

TaskName = Literal["three", "six"]
# Each list goes from common to rare: a wish's weight is the product of 1 / rank of its words.
_THINGS = (
    *("lamp", "chair", "bike", "coat", "tent", "drum", "clock", "table"),
    *("kettle", "mirror", "ladder", "piano", "basket", "bench", "violin", "fridge"),
    *("saddle", "anchor", "canoe", "harp", "wagon", "easel", "sledge", "loom"),
)
_VALUES: Mapping[str, tuple[str, ...]] = {
    "colour": (
        *("red", "blue", "green", "white", "black", "brown"),
        *("yellow", "purple", "orange", "silver", "amber", "ivory"),
    ),
    "city": (
        *("lisbon", "paris", "oslo", "rome", "vienna", "delhi"),
        *("cairo", "lima", "quito", "hanoi", "dakar", "riga"),
    ),
    "day": ("monday", "friday", "sunday", "tuesday", "saturday", "thursday", "wednesday"),
    "material": ("wood", "steel", "glass", "linen", "leather", "paper", "marble", "wool"),
    "size": ("wide", "tall", "narrow", "short", "deep", "flat"),
}
_RANKS = {word: rank for words in (_THINGS, *_VALUES.values()) for rank, word in enumerate(words)}
_MANNERS = ("good", "cheap", "old", "new", "small", "large")
_MOST_NOTES = 64
# The slope that 1 / rank becomes when wishes are drawn without repeats. Offers follow it, so that the rarity of a
# note's words does not give its grade away.
_OFFER_SLOPE = -0.75
_ASIDE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of pairs that one source holds: what its queries ask for, and what its notes offer.

    Attributes:
        thing: name of the step that compares the things.
        asked: for each further step its name, and the kinds of which a wish names one value.
        kinds: all kinds that an offer names.
    """

    criteria: Criteria
    thing: str
    asked: Mapping[str, tuple[str, ...]]
    kinds: tuple[str, ...]

    def grades(self, misses: int) -> int:
        """Return the grade of an offer of the right thing: at most half of the other steps missed is a 2, more a 1."""
        return 3 - (misses > 0) - (2 * misses > len(self.asked))

    def misses(self, grade: int) -> list[int]:
        """Return the numbers of missed steps that give a grade above 0."""
        return [misses for misses in range(len(self.asked) + 1) if self.grades(misses) == grade]


# Short, because the tiny recipe renders it into every prompt.
_THREE = Task(
    Criteria(
        name="synthetic-1",
        text="0 another thing, else 1, and 1 each for colour and place or day",
        steps=("topic", "attribute", "constraint"),
    ),
    "topic",
    {"attribute": ("colour",), "constraint": ("city", "day")},
    ("colour", "city", "day"),
)


def _task_of_six(*kinds: str) -> Task:
    text = f"0 another thing, else by misses in {' '.join(kinds)}: none 3, at most half 2, more 1"
    name = "six" if len(kinds) == len(_VALUES) else f"six-{'-'.join(kinds)}"
    criteria = Criteria(name=name, text=text, steps=("thing", *kinds))
    return Task(criteria, "thing", {kind: (kind,) for kind in kinds}, tuple(_VALUES))


_SIX = _task_of_six(*_VALUES)
_UNSEEN_KINDS = (
    ("colour", "city", "material", "size"),
    ("colour", "day", "material"),
    ("colour", "city", "size"),
    ("city", "day"),
)
_UNSEEN = tuple(_task_of_six(*kinds) for kinds in _UNSEEN_KINDS)
# Every other combination: a model that sees few learns them by heart, and can't follow a new one.
_SEEN = tuple(
    _task_of_six(*kinds)
    for size in range(2, len(_VALUES))
    for kinds in combinations(_VALUES, size)
    if kinds not in _UNSEEN_KINDS
)
_SEEN_SHARE = 0.5
UNSEEN = frozenset(task.criteria.name for task in _UNSEEN)
"""Sources of the dev pairs whose criteria no training pair has."""


@dataclass(frozen=True, slots=True)
class SyntheticData:
    """Pairs by task, and the ids of the dev pairs whose query has the rarest terms. The id of a pair begins with its source."""

    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    long_tail: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Wish:
    """A thing, and the value that each further step of the task asks for."""

    thing: str
    values: tuple[str, ...]

    @property
    def query(self) -> str:
        return " ".join((*self.values[:1], self.thing, *self.values[1:]))

    @property
    def weight(self) -> float:
        return math.prod(1 / (1 + _RANKS[word]) for word in (self.thing, *self.values))


def source_of(task: Task) -> str:
    """Return the name of a task's pairs' source."""
    return "synthetic" if task is _THREE else task.criteria.name


def tasks(name: TaskName) -> tuple[Task, ...]:
    """Return all tasks of a name, the default criteria's first."""
    return (_THREE,) if name == "three" else (_SIX, *_SEEN, *_UNSEEN)


def generate(
    seed: int, train_queries: int, dev_queries: int, notes_per_query: int, task: TaskName = "three"
) -> SyntheticData:
    """Generate pairs whose grade is 0 for another thing, else follows from the number of missed steps.

    The grades of a query's notes are balanced to within one note. The same seed gives the same data, and no query is in both
    train and dev. `six` has half as many queries again in dev, for unseen criteria. Raises DataError where a size is out of range.
    """
    if min(train_queries, dev_queries) < 1:
        raise DataError(f"{train_queries} and {dev_queries} synthetic queries: need 1 or more of each")
    if not 1 <= notes_per_query <= _MOST_NOTES:
        raise DataError(f"{notes_per_query} synthetic notes per query: need 1 to {_MOST_NOTES}")
    rng = random.Random(seed)
    partial = math.ceil(train_queries * _SEEN_SHARE / len(_SEEN)) if task == "six" else 0
    whole = max(1, train_queries - partial * len(_SEEN))
    sizes = {tasks(task)[0].criteria.name: (whole, dev_queries)}
    if task == "six":
        sizes |= {each.criteria.name: (partial, 0) for each in _SEEN}
        sizes |= {each.criteria.name: (0, math.ceil(dev_queries / 2 / len(_UNSEEN))) for each in _UNSEEN}
    train: list[Pair] = []
    dev: list[Pair] = []
    for each in tasks(task):
        trained, measured = sizes[each.criteria.name]
        wishes = _draw_wishes(rng, each, trained + measured)
        train += _make_pairs(rng, each, "train", wishes[:trained], notes_per_query)
        dev += _make_pairs(rng, each, "dev", wishes[trained:], notes_per_query)
    seen = [pair for pair in dev if pair.source not in UNSEEN]
    return SyntheticData(tuple(train), tuple(dev), long_tail_ids(train, seen))


def _draw_wishes(rng: random.Random, task: Task, number: int) -> list[_Wish]:
    """Sample distinct wishes by weight: each draws an exponential time at the rate of its weight, and the earliest win."""
    choices = (tuple(chain.from_iterable(_VALUES[kind] for kind in kinds)) for kinds in task.asked.values())
    wishes = (_Wish(words[0], words[1:]) for words in product(_THINGS, *choices))
    ringing = nsmallest(number, wishes, key=lambda wish: rng.expovariate(wish.weight))
    if len(ringing) < number:
        raise DataError(f"{number} synthetic queries: there are at most {len(ringing):,}")
    return rng.sample(ringing, number)


def _make_pairs(
    rng: random.Random, task: Task, split: str, wishes: Sequence[_Wish], notes_per_query: int
) -> Iterator[Pair]:
    number, source = 0, source_of(task)
    for wish in wishes:
        notes: set[Note] = set()
        for grade in islice(cycle(rng.sample(GRADES, len(GRADES))), notes_per_query):
            offer, note = _make_note(rng, task, wish, grade)
            while note in notes:
                offer, note = _make_note(rng, task, wish, grade)
            notes.add(note)
            yield Pair(
                id=f"{source}-{split}-{number:05}",
                query=wish.query,
                note=note,
                label=grade,
                source=source,
                criteria=task.criteria.name,
                findings=_compare(task, wish, offer),
            )
            number += 1


def _make_note(rng: random.Random, task: Task, wish: _Wish, grade: int) -> tuple[_Wish, Note]:
    """Make an offer of the grade, as what it has for each value of the wish, and its note."""
    offer = _make_offer(rng, task, wish, grade)
    named = dict(zip(map(_kind_of, offer.values), offer.values, strict=True))
    facts = [f"{kind} {named.get(kind) or _draw_other(rng, _VALUES[kind])}" for kind in task.kinds]
    asides = [
        _draw_aside(rng, _words_like(asked), asked, offered)
        for asked, offered in zip((wish.thing, *wish.values), (offer.thing, *offer.values), strict=True)
    ]
    rng.shuffle(asides)
    facts.append(f"also {' '.join(asides)}")
    rng.shuffle(facts)
    return offer, Note(f"{rng.choice(_MANNERS)} {offer.thing}", " . ".join(facts))


def _kind_of(value: str) -> str:
    return next(kind for kind, values in _VALUES.items() if value in values)


def _words_like(word: str) -> tuple[str, ...]:
    return _THINGS if word in _THINGS else _VALUES[_kind_of(word)]


def _draw_aside(rng: random.Random, words: Sequence[str], asked: str, offered: str) -> str:
    """Draw a word that the offer mentions besides: the wished one or the offered one, equally often whether they match or not.

    Otherwise a shared or repeated word would give away whether the wish is met.
    """
    drawn = rng.random()
    if drawn < _ASIDE_SHARE:
        return asked
    if drawn < 2 * _ASIDE_SHARE and asked != offered:
        return offered
    return _draw_other(rng, words, asked, offered)


def _draw_other(rng: random.Random, words: Sequence[str], *barred: str) -> str:
    others = [word for word in words if word not in barred]
    return rng.choices(others, [(1 + words.index(word)) ** _OFFER_SLOPE for word in others])[0]


def _make_offer(rng: random.Random, task: Task, wish: _Wish, grade: int) -> _Wish:
    """Make an offer that misses as many steps as its grade says; where the thing differs, each by a coin."""
    steps = range(len(wish.values))
    if grade:
        missed = set(rng.sample(steps, rng.choice(task.misses(grade))))
    else:
        missed = {step for step in steps if rng.random() < 0.5}
    values = tuple(
        _draw_other(rng, _words_like(asked), asked) if step in missed else asked
        for step, asked in enumerate(wish.values)
    )
    return _Wish(wish.thing if grade else _draw_other(rng, _THINGS, wish.thing), values)


def _compare(task: Task, wish: _Wish, offer: _Wish) -> dict[str, Finding]:
    """Compare wish and offer step by step, with the highest grade that is still possible after each step."""
    is_thing, misses = wish.thing == offer.thing, 0
    findings = {task.thing: _finding(wish.thing, offer.thing, GRADES[-1] if is_thing else 0)}
    for step, asked, found in zip(task.asked, wish.values, offer.values, strict=True):
        misses += asked != found
        findings[step] = _finding(asked, found, task.grades(misses) if is_thing else 0)
    return findings


def _finding(asked: str, found: str, grade: int) -> Finding:
    return Finding(f"{asked} {found} {'yes' if asked == found else 'no'}", grade)

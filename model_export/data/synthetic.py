"""Data that the project generates: wishes and offers whose grade follows from stated criteria.

A wish names a colour, a thing, and a city or a day. An offer names all four, and other values besides, so that shared
words alone do not give the grade away.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from typing import NamedTuple

from model_export.data.long_tail import long_tail_ids
from model_export.data.pairs import GRADES, DataError, Finding, Pair
from service.contract.manifest import Criteria
from service.contract.prompt import Note

SOURCE = "synthetic"
STEPS = ("topic", "attribute", "constraint")
CRITERIA = Criteria(
    name="synthetic-1",
    # Short, because the tiny recipe renders it into every prompt.
    text="0 another thing, else 1, and 1 each for colour and place or day",
    steps=STEPS,
)

# Each list goes from common to rare: a wish's weight is the product of 1 / rank of its words.
_THINGS = (
    *("lamp", "chair", "bike", "coat", "tent", "drum", "clock", "table"),
    *("kettle", "mirror", "ladder", "piano", "basket", "bench", "violin", "fridge"),
    *("saddle", "anchor", "canoe", "harp", "wagon", "easel", "sledge", "loom"),
)
_COLOURS = (
    *("red", "blue", "green", "white", "black", "brown"),
    *("yellow", "purple", "orange", "silver", "amber", "ivory"),
)
_CITIES = (
    *("lisbon", "paris", "oslo", "rome", "vienna", "delhi"),
    *("cairo", "lima", "quito", "hanoi", "dakar", "riga"),
)
_DAYS = ("monday", "friday", "sunday", "tuesday", "saturday", "thursday", "wednesday")
_MANNERS = ("good", "cheap", "old", "new", "small", "large")
_MOST_NOTES = 64
# The slope that 1 / rank becomes when wishes are drawn without repeats. Offers follow it, so that the rarity of a
# note's words does not give its grade away.
_OFFER_SLOPE = -0.75
_ASIDE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class SyntheticData:
    """Pairs in the order of their ids, and the ids of the dev pairs whose query has the rarest terms."""

    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    long_tail: frozenset[str]


class _Words(NamedTuple):
    """The words of a wish, or those of an offer that a wish asks about; the limit is a city or a day."""

    thing: str
    colour: str
    limit: str

    @property
    def weight(self) -> float:
        places = (
            _THINGS.index(self.thing),
            _COLOURS.index(self.colour),
            _limits_like(self.limit).index(self.limit),
        )
        return math.prod(1 / (1 + place) for place in places)


def _limits_like(limit: str) -> tuple[str, ...]:
    return _CITIES if limit in _CITIES else _DAYS


_ALL_WISHES = tuple(_Words(*words) for words in product(_THINGS, _COLOURS, _CITIES + _DAYS))


def generate(seed: int, train_queries: int, dev_queries: int, notes_per_query: int) -> SyntheticData:
    """Generate pairs: grade 0 for another thing, else 1, plus 1 each for a matching colour and a matching city or day.

    The grades of a query's notes are balanced to within one note. The same seed gives the same data, and no query is in both
    train and dev. Raises DataError where a size is out of range.
    """
    wanted = train_queries + dev_queries
    if min(train_queries, dev_queries) < 1 or wanted > len(_ALL_WISHES):
        raise DataError(
            f"{train_queries} and {dev_queries} synthetic queries: need 1 or more of each, and at most {len(_ALL_WISHES)} in all"
        )
    if not 1 <= notes_per_query <= _MOST_NOTES:
        raise DataError(f"{notes_per_query} synthetic notes per query: need 1 to {_MOST_NOTES}")
    rng = random.Random(seed)
    wishes = _draw_wishes(rng, wanted)
    train = tuple(_make_pairs(rng, "train", wishes[:train_queries], notes_per_query))
    dev = tuple(_make_pairs(rng, "dev", wishes[train_queries:], notes_per_query))
    return SyntheticData(train, dev, long_tail_ids(train, dev))


def _draw_wishes(rng: random.Random, number: int) -> list[_Words]:
    """Sample distinct wishes by weight: each draws an exponential time at the rate of its weight, and the earliest win."""
    ringing = sorted(_ALL_WISHES, key=lambda wish: rng.expovariate(wish.weight))
    return rng.sample(ringing[:number], number)


def _make_pairs(
    rng: random.Random, split: str, wishes: Sequence[_Words], notes_per_query: int
) -> Iterator[Pair]:
    number = 0
    for wish in wishes:
        notes: set[Note] = set()
        for grade in islice(cycle(rng.sample(GRADES, len(GRADES))), notes_per_query):
            offer, note = _make_note(rng, wish, grade)
            while note in notes:
                offer, note = _make_note(rng, wish, grade)
            notes.add(note)
            yield Pair(
                id=f"{SOURCE}-{split}-{number:05}",
                query=f"{wish.colour} {wish.thing} {wish.limit}",
                note=note,
                label=grade,
                source=SOURCE,
                criteria=CRITERIA.name,
                findings=_compare(wish, offer),
            )
            number += 1


def _make_note(rng: random.Random, wish: _Words, grade: int) -> tuple[_Words, Note]:
    offer = _make_offer(rng, wish, grade)
    limits = _limits_like(wish.limit)
    other = _draw_other(rng, _DAYS if limits is _CITIES else _CITIES)
    city, day = (offer.limit, other) if limits is _CITIES else (other, offer.limit)
    aside = (
        _draw_aside(rng, _COLOURS, wish.colour, offer.colour),
        _draw_aside(rng, _THINGS, wish.thing, offer.thing),
        _draw_aside(rng, limits, wish.limit, offer.limit),
    )
    facts = [f"colour {offer.colour}", f"city {city}", f"day {day}", f"also {' '.join(aside)}"]
    rng.shuffle(facts)
    return offer, Note(f"{rng.choice(_MANNERS)} {offer.thing}", " . ".join(facts))


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


def _make_offer(rng: random.Random, wish: _Words, grade: int) -> _Words:
    has_colour, has_limit = _draw_met(rng, grade)
    return _Words(
        thing=wish.thing if grade else _draw_other(rng, _THINGS, wish.thing),
        colour=wish.colour if has_colour else _draw_other(rng, _COLOURS, wish.colour),
        limit=wish.limit if has_limit else _draw_other(rng, _limits_like(wish.limit), wish.limit),
    )


def _draw_met(rng: random.Random, grade: int) -> tuple[bool, bool]:
    """Draw whether the colour, and the city or day, match the wish. Both are random where the thing differs."""
    if grade == 0:
        return rng.choice((False, True)), rng.choice((False, True))
    has_colour = grade == 3 or (grade == 2 and rng.choice((False, True)))
    return has_colour, grade == 3 or (grade == 2 and not has_colour)


def _compare(wish: _Words, offer: _Words) -> dict[str, Finding]:
    """Compare wish and offer step by step, with the highest grade that is still possible after each step."""
    grade = GRADES[-1] if wish.thing == offer.thing else 0
    findings = {}
    for step, asked, found in zip(STEPS, wish, offer, strict=True):
        if asked != found:
            grade = max(grade - 1, 0)
        findings[step] = Finding(f"{asked} {found} {'yes' if asked == found else 'no'}", grade)
    return findings

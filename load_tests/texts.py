"""Generates queries and notes of realistic length, reproducible by seed."""

import random
from typing import Any

TOPICS = {
    "cafes": "cafe coffee espresso wifi laptop table quiet noisy terrace pastry roaster socket window barista",
    "hiking": "trail summit ridge map boots water weather hut viewpoint forest river descent shade signal",
    "bread": "flour starter dough oven crust hydration salt proofing steam crumb bake knead loaf yeast",
    "python": "function loop type error test module package async thread list memory profile deploy import",
    "tax": "income deduction form deadline receipt freelance invoice refund expense rate country resident filing",
}
FILLER_TEXT = "the a of with for that when you it and near after before most best first small new old open"
FILLER = FILLER_TEXT.split()


def make_query(rng: random.Random) -> str:
    """Make a query of four to seven words about one topic."""
    words = TOPICS[rng.choice(list(TOPICS))].split()
    return " ".join(rng.sample(words, 3) + rng.sample(FILLER, rng.randint(1, 4)))


def make_note(rng: random.Random, note_id: str, words: int = 60) -> dict[str, Any]:
    """Make a note of about `words` words about one topic."""
    topic = rng.choice(list(TOPICS))
    vocabulary = TOPICS[topic].split() + FILLER * 2
    body = " ".join(rng.choice(vocabulary) for _ in range(rng.randint(words * 2 // 3, words * 4 // 3)))
    return {"id": note_id, "title": f"{topic} {rng.randint(0, 10**9)}", "body": body}

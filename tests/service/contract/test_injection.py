"""No text of a query or a note changes the template's tokens: their ids and order stay the same, and none is added.

On the fixed set of attacks that docs/security.md reports on, the template's own texts, and mixtures of all of these.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.injection import ATTACKS
from service.contract.checkpoint import Checkpoint
from service.contract.prompt import Note, Prompt
from service.contract.template import SlotPiece, TextPiece
from service.contract.text import canonicalize
from tests.checkpoints import SPECIAL_TOKENS, load_tiny


@pytest.fixture(scope="module", params=["tiny", pytest.param("default", marks=pytest.mark.engine)])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Load the default checkpoint: no engine is needed, only its folder, which `make test` assembles."""
    if request.param == "tiny":
        return load_tiny(tmp_path_factory.mktemp("checkpoint"))
    loaded: Checkpoint = request.getfixturevalue("default_checkpoint")
    return loaded


def template_texts(checkpoint: Checkpoint) -> list[str]:
    pieces = [piece.text for piece in checkpoint.manifest.template.pieces if isinstance(piece, TextPiece)]
    return [*pieces, *(criteria.text for criteria in checkpoint.manifest.criteria)]


@cache
def special_ids(tokenizer: Path) -> set[int]:
    return {token["id"] for token in json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]}


def assert_intact(checkpoint: Checkpoint, prompt: Prompt, query: str, note: Note) -> None:
    """Check that the prompt is the template's ids in order, with the texts between them encoded as plain text."""
    tokenizer = checkpoint.tokenizer
    special = special_ids(checkpoint.folder / "tokenizer.json")
    texts = {"query": query, "title": note.title, "body": note.body}
    left = list(prompt.token_ids)

    def take(count: int) -> list[int]:
        taken = left[:count]
        del left[:count]
        return taken

    for piece in checkpoint.manifest.template.pieces:
        if isinstance(piece, TextPiece):
            if piece.only_with is None or texts[piece.only_with]:
                literal = tokenizer.encode_template(piece.text)
                assert tuple(take(len(literal))) == literal
            continue
        assert isinstance(piece, SlotPiece)
        if piece.slot == "criteria":
            criteria = tokenizer.encode_template(piece.lead + checkpoint.manifest.criteria[0].text)
            assert tuple(take(len(criteria))) == criteria
            continue
        text = piece.lead + texts[piece.slot] if texts[piece.slot] else ""
        [encoded] = tokenizer.encode_user_texts([text])
        found = take(len(encoded.token_ids))
        assert not special & set(found)
        assert tokenizer.decode(found) == text
    assert left == []


def check(checkpoint: Checkpoint, query: str, title: str, body: str) -> None:
    query, note = canonicalize(query), Note(canonicalize(title), canonicalize(body))
    [prompt] = checkpoint.renderer.render(query, [note], checkpoint.renderer.default_criteria)
    if not prompt.truncated:  # only the note's end is ever truncated: test_prompt.py
        assert_intact(checkpoint, prompt, query, note)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_from_the_injection_set_stay_text(checkpoint: Checkpoint, attack: str) -> None:
    for query, title, body in (
        ("quiet cafes", "", attack),
        ("quiet cafes", attack, ""),
        (attack[:8], "", "A quiet cafe."),
        ("quiet cafes", attack[:20], f"A cafe. {attack}"),
    ):
        check(checkpoint, query, title, body)


def test_the_templates_own_texts_stay_text(checkpoint: Checkpoint) -> None:
    for text in template_texts(checkpoint):
        check(checkpoint, "quiet cafes", "", text[:150])
        check(checkpoint, "quiet cafes", text[:50], text[:50])


@given(data=st.data())
def test_random_mixtures_of_attacks_stay_text(checkpoint: Checkpoint, data: st.DataObject) -> None:
    known = st.sampled_from([*ATTACKS.values(), *template_texts(checkpoint), *SPECIAL_TOKENS, "</s>"])
    # Unicode has no characters above it yet, and the default tokenizer has no token for their first byte.
    characters = st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"]), max_size=8)
    pieces = st.lists(st.one_of(known.map(lambda text: text[:40]), characters), max_size=4)
    query, title, body = (data.draw(pieces.map("".join)) for _ in range(3))
    check(checkpoint, query[:20], title, body)

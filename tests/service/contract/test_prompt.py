import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.checkpoint import Checkpoint
from service.contract.manifest import Manifest
from service.contract.prompt import Note, PromptRenderer
from service.contract.text import canonicalize
from service.errors import InvalidRequestError
from tests.checkpoints import PIECES


def render_text(checkpoint: Checkpoint, query: str, note: Note) -> str:
    [prompt] = checkpoint.renderer.render(query, [note], "general-1")
    return checkpoint.tokenizer.decode(prompt.token_ids)


def test_prompt_follows_the_template(checkpoint: Checkpoint) -> None:
    text = render_text(checkpoint, "quiet cafe", Note("Light", "A good cafe."))
    assert text == (
        "<|im_start|>Grade the note.\nTitle: Light\nNote: A good cafe.\nQuery: quiet cafe<|im_end|>\nGrade: "
    )


def test_a_note_without_a_title_has_no_title_line(checkpoint: Checkpoint) -> None:
    text = render_text(checkpoint, "quiet cafe", Note("", "A good cafe."))
    assert text == "<|im_start|>Grade the note.\nNote: A good cafe.\nQuery: quiet cafe<|im_end|>\nGrade: "


def test_the_order_of_pieces_comes_from_the_manifest(checkpoint: Checkpoint) -> None:
    query_first = [PIECES[0], PIECES[1], *PIECES[6:8], *PIECES[2:6], PIECES[8]]
    template = {"name": "query-first-tiny", "pieces": query_first}
    manifest = Manifest.model_validate({**checkpoint.manifest.model_dump(mode="json"), "template": template})
    [prompt] = PromptRenderer(manifest, checkpoint.tokenizer).render("quiet", [Note("", "cafe")], "general-1")
    expected = "<|im_start|>Grade the note.\nQuery: quiet\nNote: cafe<|im_end|>\nGrade: "
    assert checkpoint.tokenizer.decode(prompt.token_ids) == expected


def test_criteria_are_chosen_by_name(checkpoint: Checkpoint) -> None:
    [prompt] = checkpoint.renderer.render("quiet", [Note("", "cafe")], "strict-1")
    assert "strictly and with care" in checkpoint.tokenizer.decode(prompt.token_ids)
    assert checkpoint.renderer.criteria_names == ("general-1", "strict-1")


@given(query=st.text(max_size=10), title=st.text(max_size=80), body=st.text(max_size=200))
def test_cue_and_query_survive_any_note(checkpoint: Checkpoint, query: str, title: str, body: str) -> None:
    query, note = canonicalize(query), Note(canonicalize(title), canonicalize(body))
    [prompt] = checkpoint.renderer.render(query, [note], "general-1")
    text = checkpoint.tokenizer.decode(prompt.token_ids)
    assert text.endswith(f"\nQuery: {query}<|im_end|>\nGrade: " if query else "\nQuery:<|im_end|>\nGrade: ")
    assert len(prompt.token_ids) <= checkpoint.renderer.max_prompt_tokens
    title_line = f"\nTitle: {note.title}" if note.title else ""
    whole = f"{title_line}\nNote:{' ' if note.body else ''}{note.body}\nQuery:"
    assert prompt.truncated != (whole in text)


def test_only_the_end_of_the_note_is_truncated(checkpoint: Checkpoint) -> None:
    body = " ".join(f"word{i}" for i in range(100))
    [prompt] = checkpoint.renderer.render("quiet", [Note("Title", body)], "general-1")
    text = checkpoint.tokenizer.decode(prompt.token_ids)
    kept = text.split("\nNote: ")[1].split("\nQuery:")[0]
    assert prompt.truncated
    assert body.startswith(kept)
    assert 0 < len(kept) < len(body)


def test_a_long_title_leaves_no_room_for_the_body(checkpoint: Checkpoint) -> None:
    [prompt] = checkpoint.renderer.render("quiet", [Note("x" * 500, "body")], "general-1")
    assert prompt.truncated
    assert "\nNote:\nQuery: quiet<|im_end|>" in checkpoint.tokenizer.decode(prompt.token_ids)


def test_query_over_its_limit_is_refused_not_truncated(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidRequestError, match=r"the query has \d+ tokens, limit 64") as caught:
        checkpoint.renderer.render("x1" * 60, [Note("", "cafe")], "general-1")
    assert [bad.field for bad in caught.value.fields] == ["query"]


def test_criteria_may_have_limits_of_their_own(checkpoint: Checkpoint) -> None:
    data = checkpoint.manifest.model_dump(mode="json")
    general, strict = data["criteria"]
    wider = {**strict, "limits": {"max_query_tokens": 70, "max_note_tokens": 90}}
    renderer = PromptRenderer(
        Manifest.model_validate({**data, "criteria": [general, wider]}), checkpoint.tokenizer
    )
    assert renderer.limits("general-1") == checkpoint.manifest.limits
    query, note = "1" * 66, Note("", "1" * 500)
    [prompt] = renderer.render(query, [note], "strict-1")
    assert len(prompt.token_ids) <= renderer.max_prompt_tokens
    assert renderer.max_prompt_tokens == checkpoint.renderer.max_prompt_tokens + (70 - 64) + (90 - 48)
    with pytest.raises(InvalidRequestError, match="limit 64"):
        renderer.render(query, [note], "general-1")
    [short], [long] = (renderer.render("", [note], name) for name in ("general-1", "strict-1"))
    assert len(long.token_ids) - renderer.overhead_tokens("strict-1") == 90
    assert len(short.token_ids) - renderer.overhead_tokens("general-1") == 48


def test_unknown_criteria_are_refused_and_no_name_means_the_default(checkpoint: Checkpoint) -> None:
    assert checkpoint.renderer.choose_criteria(None) == "general-1"
    with pytest.raises(InvalidRequestError, match="no such criteria; it has general-1, strict-1"):
        checkpoint.renderer.choose_criteria("other")


def test_a_prompt_does_not_depend_on_the_other_notes(checkpoint: Checkpoint) -> None:
    notes = [Note("", "one"), Note("Two", "and a body"), Note("", "")]
    together = checkpoint.renderer.render("quiet", notes, "general-1")
    alone = [checkpoint.renderer.render("quiet", [note], "general-1")[0] for note in notes]
    assert together == alone


def test_max_prompt_tokens_is_reached_with_a_template_text_that_repeats(checkpoint: Checkpoint) -> None:
    separator = {"text": "\n---\n"}
    pieces = [*PIECES[:2], separator, *PIECES[2:4], separator, *PIECES[4:6], separator, *PIECES[6:]]
    data = checkpoint.manifest.model_dump(mode="json")
    manifest = Manifest.model_validate({**data, "template": {"name": "separated", "pieces": pieces}})
    renderer = PromptRenderer(manifest, checkpoint.tokenizer)
    [query] = checkpoint.tokenizer.encode_user_texts([" quiet"])
    [longest] = renderer.render("quiet", [Note("title " * 5, "1" * 500)], "strict-1")
    unused = manifest.limits.max_query_tokens - len(query.token_ids)
    assert len(longest.token_ids) == renderer.max_prompt_tokens - unused


@pytest.mark.parametrize("criteria", ["general-1", "strict-1"])
def test_every_prompt_has_at_least_the_overhead_tokens(checkpoint: Checkpoint, criteria: str) -> None:
    [shortest] = checkpoint.renderer.render("", [Note("", "")], criteria)
    assert len(shortest.token_ids) == checkpoint.renderer.overhead_tokens(criteria)


@given(title=st.text(max_size=40), body=st.text(max_size=200), most=st.integers(1, 40))
def test_a_cut_note_is_a_start_of_the_note_within_the_limit(
    checkpoint: Checkpoint, title: str, body: str, most: int
) -> None:
    note = Note(canonicalize(title), canonicalize(body))
    [cut] = checkpoint.renderer.cut([note], most)
    assert (note.title.startswith(cut.title), note.body.startswith(cut.body)) == (True, True)
    assert tokens_of(checkpoint, cut) <= most
    assert cut == note or tokens_of(checkpoint, note) > most


def tokens_of(checkpoint: Checkpoint, note: Note) -> int:
    prompts = checkpoint.renderer.render("", [Note("", ""), note], "general-1")
    title_line = len(checkpoint.tokenizer.encode_template("\nTitle:")) if note.title else 0
    return len(prompts[1].token_ids) - len(prompts[0].token_ids) - title_line


def test_a_cut_keeps_the_title_first(checkpoint: Checkpoint) -> None:
    notes = [Note("quiet cafe", "light " * 30), Note("quiet " * 30, "light"), Note("", "")]
    cut = checkpoint.renderer.cut(notes, 10)
    assert [note.title for note in cut] == ["quiet cafe", notes[1].title[: len(cut[1].title)], ""]
    assert [bool(note.body) for note in cut] == [True, False, False]
    assert [tokens_of(checkpoint, note) for note in cut] == [10, 10, 0]

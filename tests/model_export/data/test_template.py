from itertools import pairwise

import pytest

from model_export.data.template import (
    DEFAULT_TEMPLATE,
    TEMPLATES,
    TemplateError,
    check_control_tokens,
    default_template,
    find_template,
    vector_template,
)
from service.contract.template import SlotPiece, Template, TextPiece
from service.contract.tokenizer import ContractTokenizer
from tests.checkpoints import bos_tokenizer_json, tiny_tokenizer_json


def slots(template: Template) -> list[str]:
    return [piece.slot for piece in template.pieces if isinstance(piece, SlotPiece)]


def test_default_reads_the_note_first() -> None:
    assert slots(find_template(DEFAULT_TEMPLATE)) == ["criteria", "title", "body", "query"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_template_has_the_order_of_its_name_and_a_cue_that_ends_with_a_blank(template: Template) -> None:
    note, query = ["title", "body"], ["query"]
    order = [*note, *query] if template.name.startswith("note-first") else [*query, *note]
    assert slots(template) == ["criteria", *order]
    has_bos = template.pieces[0] == TextPiece(text="<bos>")
    tokenizer = ContractTokenizer(bos_tokenizer_json() if has_bos else tiny_tokenizer_json())
    cue = tokenizer.encode_template(template.cue)
    assert template.cue.endswith("Grade: ")
    assert tokenizer.encode_template(template.cue + "3") == (*cue, *tokenizer.encode_template("3"))
    # A blank before a slot would be a token of its own, and the word after it a rarer one.
    for piece, following in pairwise(template.pieces):
        if isinstance(following, SlotPiece) and not isinstance(piece, SlotPiece):
            assert not piece.text.endswith(" ")
    check_control_tokens(template, tokenizer)


def test_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(TemplateError, match="note-first-1, query-first-1"):
        find_template("cue-first")


def test_base_without_the_first_token_is_refused() -> None:
    with pytest.raises(
        TemplateError, match="note-first-bos-1 uses <bos>, which this base's tokenizer does not know"
    ):
        check_control_tokens(find_template("note-first-bos-1"), ContractTokenizer(tiny_tokenizer_json()))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "bos" not in name])
def test_base_with_a_first_token_is_refused_a_template_without_it(name: str) -> None:
    with pytest.raises(TemplateError, match=r"<bos>.*choose note-first-bos-1"):
        check_control_tokens(find_template(name), ContractTokenizer(bos_tokenizer_json()))


def test_template_of_a_base_without_training_has_its_first_token() -> None:
    found = [
        default_template(ContractTokenizer(text())).name for text in (tiny_tokenizer_json, bos_tokenizer_json)
    ]
    assert found == ["note-first-1", "note-first-bos-1"]


def test_vectors_of_a_note_and_their_reader_begin_with_the_first_token() -> None:
    template = vector_template(find_template("note-first-bos-1"), block=8)
    assert template.note[0] == template.prefix[0] == TextPiece(text="<bos>")

import pytest

from model_export.data.template import (
    DEFAULT_TEMPLATE,
    TEMPLATES,
    TemplateError,
    check_control_tokens,
    find_template,
)
from service.contract.manifest import SlotPiece, Template
from service.contract.tokenizer import ContractTokenizer
from tests.checkpoints import tiny_tokenizer_json


def slots(template: Template) -> list[str]:
    return [piece.slot for piece in template.pieces if isinstance(piece, SlotPiece)]


def test_default_reads_the_note_first() -> None:
    assert slots(find_template(DEFAULT_TEMPLATE)) == ["criteria", "title", "body", "query"]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_template_has_the_order_of_its_name(template: Template) -> None:
    after_criteria = slots(template)[1:]
    expected = (
        ["title", "body", "query"] if template.name.startswith("note-first") else ["query", "title", "body"]
    )
    assert after_criteria == expected


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_label_follows_the_blank_of_the_cue(template: Template) -> None:
    tokenizer = ContractTokenizer(tiny_tokenizer_json())
    cue = tokenizer.encode_template(template.cue)
    assert template.cue.endswith("Grade: ")
    assert tokenizer.encode_template(template.cue + "3") == (*cue, *tokenizer.encode_template("3"))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_text_before_a_slot_leaves_the_blank_to_it(template: Template) -> None:
    # A blank at the end of the piece would be a token of its own, and the word after it a rarer one.
    for piece, following in zip(template.pieces, template.pieces[1:], strict=False):
        if isinstance(following, SlotPiece) and not isinstance(piece, SlotPiece):
            assert not piece.text.endswith(" ")


def test_unknown_name_lists_the_known_names() -> None:
    with pytest.raises(TemplateError, match="note-first-1, query-first-1"):
        find_template("cue-first")


def test_base_that_knows_the_control_tokens_passes() -> None:
    tokenizer = ContractTokenizer(tiny_tokenizer_json())
    for template in TEMPLATES.values():
        check_control_tokens(template, tokenizer)

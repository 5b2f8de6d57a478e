"""The terms that the licence of a base asks to be passed on with whatever is made of it: in checkpoints and adapters."""

from importlib import resources
from pathlib import Path

from model_export.models.base_model import GEMMA_PACKAGE
from service.contract.manifest import Base, Lineage

NOTICE_NAME, TERMS_NAME = "NOTICE", "GEMMA_TERMS.html"
# Section 3.1 of the Gemma Terms of Use asks for the first sentence word by word, for a notice of changes, for the restrictions
# of use as a condition, and for a copy of the terms.
_GEMMA = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

These files were made from {base}, from its weights or from what it wrote, and changed: converted to another format and, unless
their model card calls them zero-shot, fine-tuned.
The terms bind everyone who uses them or passes them on, including through an API. Whoever passes them on hands over this
notice and a copy of the terms, and binds the recipient to the restrictions of use in section 3.2 of the terms, which include
the Gemma Prohibited Use Policy found at ai.google.dev/gemma/prohibited_use_policy
"""
_NOTICES = {"gemma": _GEMMA}


def notice_of(base: Base, lineage: Lineage) -> str:
    """Return the notice that must go with what is made of a base and its teacher's; empty for licences that ask for none.

    Gemma's terms count a model that learned from a Gemma model's outputs among its derivatives (section 1.1).
    """
    bound = [each for each in (base, lineage.teacher_base) if each and each.licence.lower() in _NOTICES]
    return "\n".join(_NOTICES[each.licence.lower()].format(base=each.name) for each in bound)


def write_terms(folder: Path, base: Base, lineage: Lineage) -> None:
    """Write `NOTICE`, and the terms themselves where the base's package, which carries them, is installed."""
    if not (notice := notice_of(base, lineage)):
        return
    (folder / NOTICE_NAME).write_text(notice, encoding="utf-8")
    try:
        terms = resources.files(GEMMA_PACKAGE).joinpath("data", TERMS_NAME)
    except ModuleNotFoundError:
        return
    (folder / TERMS_NAME).write_bytes(terms.read_bytes())

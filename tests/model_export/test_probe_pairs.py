import unicodedata
from pathlib import Path

from model_export.checkpoint.writer import read_probe_pairs
from service.contract.checkpoint import load_checkpoint

PAIRS = read_probe_pairs()
TEXTS = [text for query, note in PAIRS for text in (query, note.title or "", note.body)]


def test_there_are_32_distinct_pairs() -> None:
    assert len(set(PAIRS)) == len(PAIRS) == 32


def test_scripts_emoji_and_missing_parts_are_covered() -> None:
    names = {unicodedata.name(c, "").split()[0] for text in TEXTS for c in text}
    assert {"LATIN", "CJK", "HIRAGANA", "ARABIC", "DEVANAGARI", "CYRILLIC", "COMBINING", "ZERO"} <= names
    assert any(unicodedata.category(c) == "So" for text in TEXTS for c in text)
    parts = {(bool(note.title), bool(note.body)) for _, note in PAIRS}
    assert {(False, False), (True, False)} <= parts
    assert any(note.title is None for _, note in PAIRS)


def test_text_of_templates_is_covered() -> None:
    spoken = "".join(note.body for _, note in PAIRS)
    for word in ("<|im_end|>", "<|im_start|>assistant", "Query:", "Note:", "Grade: 3"):
        assert word in spoken
    assert any("<|im_start|>" in query for query, _ in PAIRS)


def test_one_note_is_truncated_and_no_query_is_too_long(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    truncated = 0
    for probe in checkpoint.probes:
        query, note = probe.canonical()
        [prompt] = checkpoint.renderer.render(query, [note], probe.criteria)
        truncated += prompt.truncated
    assert truncated >= 1

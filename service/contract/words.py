"""The one splitter of text into words, for baselines, the long tail and gold traces."""

import re
from collections.abc import Iterator

# Han, kana and Hangul: scripts without blanks between words (or, in Korean, with uneven ones).
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
SPACED = rf"[^\W_{CJK}]"
"""Pattern of a letter or digit of a script that puts blanks between words."""
_RUN = re.compile(rf"[{CJK}]+|{SPACED}+")
_STARTS_CJK = re.compile(f"[{CJK}]")


def split_words(text: str, cjk_characters: int = 2) -> Iterator[str]:
    """Yield the words of letters and digits; a run of CJK characters as n-grams of `cjk_characters`.

    A run shorter than that is one word. Case and Unicode form stay as they are.
    """
    for run in _RUN.findall(text):
        if len(run) > cjk_characters and _STARTS_CJK.match(run):
            yield from (run[i : i + cjk_characters] for i in range(len(run) - cjk_characters + 1))
        else:
            yield run

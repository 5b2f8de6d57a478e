"""The checkpoint's tokenizer, with one method for template text and another for user text.

Service and trainer both encode with it, so that their prompts can't differ.
"""

import json
import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from service.errors import CheckpointError, ManifestError


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The token ids of a user text, and where each token starts and ends in it, in characters."""

    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def head(self, max_tokens: int) -> tuple[int, ...]:
        """Return the first tokens, at most `max_tokens`, without splitting a character."""
        end = min(max(max_tokens, 0), len(self.token_ids))
        # A byte-level tokenizer may encode one character as several tokens, whose offsets overlap.
        while 0 < end < len(self.token_ids) and self.offsets[end][0] < self.offsets[end - 1][1]:
            end -= 1
        return self.token_ids[:end]

    def head_chars(self, max_tokens: int) -> int:
        """Return where the last of the first tokens ends in the text, in characters."""
        end = len(self.head(max_tokens))
        return self.offsets[end - 1][1] if end else 0


class ContractTokenizer:
    """Encodes template text with its special tokens, and user text without any."""

    def __init__(self, tokenizer_json: str) -> None:
        """Parse the text of a `tokenizer.json`. Raises ManifestError if user text could become a special token."""
        self._template_side = Tokenizer.from_str(tokenizer_json)
        self._template_side.no_truncation()
        self._template_side.no_padding()
        self._user_side = _without_added_tokens(tokenizer_json)
        self._check_user_side()

    @classmethod
    def load(cls, folder: Path) -> "ContractTokenizer":
        """Load the tokenizer of a checkpoint folder. Raises CheckpointError when it can't be read."""
        path = folder / "tokenizer.json"
        try:
            return cls(path.read_text(encoding="utf-8"))
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises bare Exception on a file it can't parse
            raise CheckpointError(f"{path} can't be read as a tokenizer: {error}") from error

    def to_json(self) -> str:
        """Return the text of its `tokenizer.json`, without truncation and padding."""
        return str(self._template_side.to_str())

    def encode_template(self, text: str) -> tuple[int, ...]:
        """Return the token ids of trusted text, in which `<|im_start|>` and the like become special tokens."""
        return tuple(self._template_side.encode(text, add_special_tokens=False).ids)

    def encode_user_texts(self, texts: Sequence[str]) -> list[EncodedText]:
        """Return the token ids of each untrusted text. The spelling of a special token stays plain characters."""
        encodings = self._user_side.encode_batch(list(texts), add_special_tokens=False)
        return [EncodedText(tuple(e.ids), tuple(e.offsets)) for e in encodings]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of these tokens, including special ones."""
        return str(self._template_side.decode(list(token_ids), skip_special_tokens=False))

    def decode_with_ends(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text without special tokens, and where each token ends in it, in characters.

        The model's tokens are decoded because encoding their text again may give other tokens.
        """
        decode = self._template_side.decode
        text = str(decode(list(token_ids), skip_special_tokens=True))
        # A prefix that ends inside a character ends with U+FFFD, which the common prefix leaves out. DecodeStream would
        # decode each token only once, but it returns nothing for bytes that are not UTF-8, and so gives other ends there.
        prefixes = (
            decode(list(token_ids[:end]), skip_special_tokens=True) for end in range(1, len(token_ids) + 1)
        )
        # The texts are not paths: a common prefix by character is intended.
        return text, tuple(len(os.path.commonprefix([text, str(prefix)])) for prefix in prefixes)  # noqa: RUF071

    def _check_user_side(self) -> None:
        decoder = self._template_side.get_added_tokens_decoder()
        # Line breaks and tabs carry no instruction; Gemma's tokenizer has added tokens for runs of them.
        added = {i: token.content for i, token in decoder.items() if token.content.strip()}
        reachable = set(added)
        # A tokenizer without byte fallback needs its unknown token, which carries no instruction.
        unknown = getattr(self._user_side.model, "unk_token", None)
        if unknown is not None:
            reachable.discard(self._user_side.token_to_id(unknown))
        for content in added.values():
            ids = self._user_side.encode(content, add_special_tokens=False).ids
            if reachable.intersection(ids):
                raise ManifestError(
                    f"tokenizer.json lets user text become the special token {content!r}: "
                    "serving it would let a note rewrite its own prompt"
                )


def _without_added_tokens(tokenizer_json: str) -> Tokenizer:
    spec = json.loads(tokenizer_json)
    # `encode_special_tokens` alone would still match added tokens that are not marked special (<think>).
    spec["added_tokens"] = []
    spec["post_processor"] = None
    spec["truncation"] = None
    spec["padding"] = None
    return Tokenizer.from_str(json.dumps(spec))

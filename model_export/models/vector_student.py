"""The encoder of note vectors and the reader of them: two copies of one text student.

The encoder reads a note alone. The means of its last hidden states over equal parts of the note are the note's vectors. The
reader's prompt has them in place of the note's tokens. Source: MixLM (arXiv 2512.07846); means of parts instead of learned
tokens, and one model for any number of parts: arXiv 2510.20797.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from model_export.models.model_io import load_model
from model_export.models.packing import pack_whole, unpack
from model_export.models.vector_batches import VectorPair, collate_pairs
from service.contract.labels import LabelDistribution
from service.contract.manifest import ENCODER_NAME
from service.contract.probes import Probe
from service.contract.vector_prompt import VectorPrompt, VectorRenderer

Batch = Mapping[str, Any]


class VectorStudent(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """Reads a batch of pairs, whose notes are vectors. The models of both are changed in place by training."""

    def __init__(self, encoder: PreTrainedModel, reader: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.reader = reader.model
        # Without the model that holds both: where weights are tied, it would list one tensor twice.
        self.head = None if reader.config.tie_word_embeddings else reader.lm_head
        embeddings = reader.get_input_embeddings().weight.detach().float()
        # Vectors as long as an embedding: the reader has never seen others at its first layer.
        self.scale = embeddings.pow(2).mean().sqrt().item()

    def encode(self, batch: Batch) -> torch.Tensor:
        """Return the vectors of the batch's notes, (notes, parts, hidden); rows beyond a note's parts are zeros.

        Args:
            batch: `notes`, what `pack_whole` returns for them, with embeddings or token ids; `parts` (notes, parts, length),
                which averages each part.
        """
        hidden = self.encoder(**batch["notes"], use_cache=False).last_hidden_state[0]
        parts = batch["parts"]
        means = parts @ unpack(hidden, parts.shape[-1], batch["notes"]["packing"]).float()
        return self.scale * nn.functional.rms_norm(means, means.shape[-1:])

    def read(self, vectors: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the reader's last hidden state of each pair's cue, (pairs, hidden).

        Args:
            vectors: (notes, parts, hidden).
            batch: `ids`, `positions` (queries, length); `slots` (queries, length), the number of the vector at a position
                among all (note, part), or -1 where `ids` has a token; `mask` (queries, 1, length, length), True where a
                position is seen; `answers` (pairs, 2), the query and the position of each pair's last token.
        """
        embeds = self.reader.get_input_embeddings()(batch["ids"])
        flat = vectors.flatten(0, 1).to(embeds.dtype)
        slots = batch["slots"]
        embeds = torch.where((slots >= 0).unsqueeze(-1), flat[slots.clamp(min=0)], embeds)
        unseen = torch.zeros_like(batch["mask"], dtype=embeds.dtype).masked_fill(
            ~batch["mask"], torch.finfo(embeds.dtype).min
        )
        hidden = self.reader(
            inputs_embeds=embeds, attention_mask=unseen, position_ids=batch["positions"], use_cache=False
        ).last_hidden_state
        queries, places = batch["answers"].unbind(-1)
        found: torch.Tensor = hidden[queries, places]
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits over the vocabulary that follow these hidden states, (rows, vocabulary)."""
        if self.head is not None:
            found: torch.Tensor = self.head(hidden)
            return found
        return nn.functional.linear(hidden, self.reader.get_input_embeddings().weight)

    def read_text(self, prompts: Batch) -> torch.Tensor:
        """Return the last hidden state of prompts that hold the note's text, (prompts, hidden); `pack_prompts` made them."""
        read = {name: tensor for name, tensor in prompts.items() if name != "logits_to_keep"}
        hidden = self.reader(**read, use_cache=False).last_hidden_state
        found: torch.Tensor = hidden[0, prompts["logits_to_keep"]]
        return found


class VectorReference:
    """Encodes one note and reads one prompt at a time, in float32: the reference for every engine and encoder."""

    def __init__(self, student: VectorStudent, label_token_ids: Sequence[int]) -> None:
        self._student = student.eval()
        self._labels = list(label_token_ids)

    @classmethod
    def load(cls, folder: Path, label_token_ids: Sequence[int]) -> Self:
        """Load a reader's folder, with its encoder in it."""
        return cls(VectorStudent(load_model(folder / ENCODER_NAME), load_model(folder)), label_token_ids)

    def encode(self, token_ids: Sequence[int], parts: int) -> bytes:
        """Return the note's vectors, rows of little-endian float16; at most one for each of its tokens."""
        config = self._student.encoder.config
        batch = collate_pairs([VectorPair((), tuple(token_ids))], (), parts)
        with torch.inference_mode():
            [vectors] = self._student.encode(batch | {"notes": pack_whole([token_ids], config)})
        rows: bytes = vectors[: min(parts, len(token_ids))].cpu().numpy().astype("<f2").tobytes()
        return rows

    def read_note(
        self, renderer: VectorRenderer, probe: Probe, parts: int
    ) -> tuple[bytes, LabelDistribution]:
        """Return the vectors of the probe's note, and the raw label distribution that is read from them."""
        query, note = probe.canonical()
        rows = self.encode(renderer.notes([note])[0].token_ids, parts)
        prefix = renderer.prefix(query, probe.criteria)
        return rows, self.distribution(VectorPrompt(prefix, rows, renderer.cue))

    def distribution(self, prompt: VectorPrompt) -> LabelDistribution:
        """Return the raw label distribution of a prompt."""
        width = self._student.reader.config.hidden_size
        vectors = torch.frombuffer(bytearray(prompt.rows), dtype=torch.float16).float().view(1, -1, width)
        parts = vectors.shape[1]
        batch = collate_pairs([VectorPair(prompt.prefix, (0,) * parts)], prompt.cue, parts)
        with torch.inference_mode():
            [logits] = self._student.logits(self._student.read(vectors, batch))
        return LabelDistribution.from_logprobs(logits.float().log_softmax(-1)[self._labels].tolist())

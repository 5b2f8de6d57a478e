from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from model_export.models.model_io import speed_up
from model_export.models.packing import pack_whole
from model_export.models.vector_batches import (
    VectorPair,
    average_parts,
    collate_pairs,
    distinct_notes,
)
from model_export.models.vector_student import VectorStudent
from tests.tiny_base import make_micro_model

CUE = (7, 8)
PAIRS = [
    VectorPair((1, 2, 3), (10, 11, 12, 13, 14)),
    VectorPair((4, 5, 6, 9), (10, 11, 12, 13, 14)),
    VectorPair((1, 2, 3), (15, 6)),
    VectorPair((1, 2, 3), (0, 1, 12, 14, 12, 3, 9)),
]


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Make an encoder and a reader of different weights, so that a test can tell them apart."""
    encoder = make_micro_model(layers=2)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(1.3)
    reader = make_micro_model(layers=2)
    for model in (encoder, reader):
        speed_up(model, compiled=False)
    return encoder, reader


def batch_of(student: VectorStudent, pairs: list[VectorPair], parts: int) -> dict[str, Any]:
    notes = pack_whole(distinct_notes(pairs), student.encoder.config)
    return {**collate_pairs(pairs, CUE, parts), "notes": notes}


def read(student: VectorStudent, pairs: list[VectorPair], parts: int) -> torch.Tensor:
    batch = batch_of(student, pairs, parts)
    with torch.inference_mode():
        return student.logits(student.read(student.encode(batch), batch))


def read_alone(
    encoder: PreTrainedModel, reader: PreTrainedModel, pair: VectorPair, parts: int
) -> torch.Tensor:
    """Read one pair without any batch: the note's tokens, the means of its parts, and the prompt around them."""
    embeddings = reader.get_input_embeddings()
    with torch.inference_mode():
        states = encoder.model(torch.tensor([pair.note])).last_hidden_state[0]
        used = min(parts, len(pair.note))
        bounds = [part * len(pair.note) // used for part in range(used + 1)]
        means = torch.stack([states[a:b].mean(0) for a, b in pairwise(bounds)])
        length = embeddings.weight.pow(2).mean().sqrt()
        vectors = means / means.pow(2).mean(-1, keepdim=True).sqrt() * length
        whole = torch.cat(
            [embeddings(torch.tensor(pair.prefix)), vectors, embeddings(torch.tensor(CUE))]
        ).unsqueeze(0)
        return reader(inputs_embeds=whole).logits[0, -1]


@pytest.mark.parametrize("parts", [1, 3, 16])
def test_a_batch_reads_each_pair_as_if_it_were_alone(
    models: tuple[PreTrainedModel, PreTrainedModel], parts: int
) -> None:
    found = read(VectorStudent(*models), PAIRS, parts)
    alone = torch.stack([read_alone(*models, pair, parts) for pair in PAIRS])
    assert torch.allclose(found, alone, atol=1e-5)
    # The notes, the prefixes and the number of parts do change what is read.
    assert all((found[0] - other).abs().max() > 1e-3 for other in found[1:])


def test_parts_average_all_tokens_and_are_nearly_equal() -> None:
    matrix = average_parts(length=10, parts=4, width=12)
    assert torch.allclose(matrix.sum(-1), torch.ones(4))
    assert (matrix > 0).sum(-1).tolist() == [2, 3, 2, 3]
    assert (matrix[:, :10] > 0).sum(0).tolist() == [1] * 10
    assert not matrix[:, 10:].any()


def test_a_note_with_fewer_tokens_than_parts_has_a_vector_for_each_token() -> None:
    matrix = average_parts(length=2, parts=4, width=5)
    assert matrix[:2, :2].equal(torch.eye(2))
    assert not matrix[2:].any()


def test_gradients_reach_the_encoder_through_the_reader(
    models: tuple[PreTrainedModel, PreTrainedModel],
) -> None:
    encoder, _ = models
    student = VectorStudent(*models)
    batch = batch_of(student, PAIRS, 2)
    student.logits(student.read(student.encode(batch), batch)).logsumexp(-1).sum().backward()
    assert all(layer.self_attn.o_proj.weight.grad.abs().sum() > 0 for layer in encoder.model.layers)
    student.zero_grad()

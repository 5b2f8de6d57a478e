from itertools import pairwise
from pathlib import Path

import numpy as np

from service.vectors.encoder_child import load_encoder
from tests.tiny_base import make_micro_model


def test_vectors_are_the_trainer_s_means_of_equal_parts(tmp_path: Path) -> None:
    """Computes them plainly from the same model's hidden states."""
    import torch

    model = make_micro_model(2)
    model.save_pretrained(tmp_path)
    encode = load_encoder(tmp_path, per_note=4, threads=1)
    scale = model.get_input_embeddings().weight.detach().pow(2).mean().sqrt()
    ends = {(3, 1, 4, 1, 5, 9, 2, 6, 5, 3): (0, 2, 5, 7, 10), (8, 9): (0, 1, 2), (7,): (0, 1)}
    for note, bounds in ends.items():
        with torch.no_grad():
            hidden = model.model(torch.tensor([note])).last_hidden_state[0]
        parts = [hidden[start:end].mean(0) for start, end in pairwise(bounds)]
        expected = scale * torch.nn.functional.rms_norm(torch.stack(parts), (32,))
        vectors = np.frombuffer(encode(note), "<f2").reshape(-1, 32)
        np.testing.assert_allclose(vectors, expected.half().numpy(), rtol=2e-3, atol=1e-5)

import numpy as np

from model_export.data.synthetic import generate
from model_export.encoding import gate_readings
from model_export.evaluation.evaluate import evaluate
from model_export.evaluation.predict import make_predictions
from model_export.recipe_stages import EncodeConfig

CONFIG = EncodeConfig(vectors=(1, 4), served=4)
PAIRS = generate(seed=2, train_queries=1, dev_queries=12, notes_per_query=8, task="six").dev


def gates_of(wrong: float) -> dict[str, tuple[float, bool]]:
    """Gate vectors that give another grade than the text's, which is right, for that share of the pairs."""
    right = np.eye(4)[[pair.label for pair in PAIRS]] * 0.9 + 0.025
    chosen = np.random.default_rng(1).random(len(PAIRS)) < wrong
    by_vectors = np.where(chosen[:, None], right[:, ::-1], right)
    systems = [make_predictions("student", right, None)]
    systems += [make_predictions(f"vectors_{parts}", by_vectors, None) for parts in CONFIG.vectors]
    found = evaluate(systems, PAIRS, frozenset(), controls=["student"], seed=1, draws=20)
    return {gate.name: (gate.figure, gate.passed) for gate in gate_readings(found, "student", CONFIG)}


def test_vectors_that_read_as_text_does_pass_on_every_source() -> None:
    gates = gates_of(wrong=0.0)
    assert all(figure == 1 and passed for figure, passed in gates.values())
    sources = {pair.source for pair in PAIRS}
    assert len(sources) > 1
    expected = {
        f"vectors_{metric}_{split}" for metric in ("macro_f1", "ndcg_at_10") for split in (*sources, "all")
    }
    assert gates.keys() == expected


def test_vectors_that_read_worse_do_not_pass() -> None:
    figure, passed = gates_of(wrong=0.3)["vectors_macro_f1_all"]
    assert 0.4 < figure < 0.97
    assert not passed

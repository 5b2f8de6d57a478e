import numpy as np

from model_export.data.synthetic import generate
from model_export.encoding import TEXT_STUDENT, gate_readings, mix
from model_export.evaluation.evaluate import evaluate
from model_export.evaluation.predict import make_predictions
from model_export.recipe_stages import EncodeConfig

CONFIG = EncodeConfig(vectors=(1, 4), served=4)
PAIRS = generate(seed=2, train_queries=1, dev_queries=12, notes_per_query=8, task="six").dev


def gates_of(wrong: float, wrong_text: float = 0.0) -> dict[str, tuple[float, bool]]:
    """Gate readings that give another grade than the text student's, which is right, for these shares of the pairs."""
    right = np.eye(4)[[pair.label for pair in PAIRS]] * 0.9 + 0.025
    chosen = np.random.default_rng(1).random((len(PAIRS), 1))
    by_vectors, by_text = (np.where(chosen < share, right[:, ::-1], right) for share in (wrong, wrong_text))
    as_text, served = (
        make_predictions("student", by_text, None),
        make_predictions("vectors_4", by_vectors, None),
    )
    systems = [
        as_text,
        served,
        make_predictions(TEXT_STUDENT, right, None),
        mix(PAIRS, as_text, served, seed=2),
    ]
    found = evaluate(systems, PAIRS, frozenset(), controls=["student"], seed=1, draws=20)
    return {gate.name: (gate.figure, gate.passed) for gate in gate_readings(found, "student", CONFIG)}


def test_vectors_that_read_as_text_does_pass_on_every_source() -> None:
    gates = gates_of(wrong=0.0)
    assert all(figure == 1 and passed for figure, passed in gates.values())
    sources = {pair.source for pair in PAIRS}
    assert len(sources) > 1
    expected = {
        f"{reading}_{metric}_{split}"
        for reading in ("vectors", "mixed", "text")
        for metric in ("macro_f1", "ndcg_at_10")
        for split in (*sources, "all")
    }
    assert gates.keys() == expected


def test_vectors_that_read_worse_do_not_pass() -> None:
    gates = gates_of(wrong=0.3)
    figure, passed = gates["vectors_macro_f1_all"]
    assert 0.4 < figure < 0.97
    assert not passed
    mixed, _ = gates["mixed_macro_f1_all"]
    assert figure < mixed < 1
    assert gates["text_macro_f1_all"] == (1, True)


def test_a_text_reading_that_learning_vectors_has_spoilt_does_not_pass() -> None:
    gates = gates_of(wrong=0.0, wrong_text=0.3)
    assert not gates["text_macro_f1_all"][1]
    assert gates["vectors_macro_f1_all"][1]

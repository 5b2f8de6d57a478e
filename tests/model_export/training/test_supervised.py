from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PretrainedConfig, PreTrainedModel

from model_export.data.pairs import UNJUDGED
from model_export.recipe_stages import TrainConfig
from model_export.run_log import RunLog, read_log
from model_export.training.batches import Example, collate
from model_export.training.learned_weights import learn_linears
from model_export.training.ranking import Ranking
from model_export.training.supervised import (
    OUTPUTS_NAME,
    Reporter,
    StageSettings,
    losses,
    saved_state,
    train,
)
from tests.tiny_base import make_micro_model

CONFIG = PretrainedConfig()
LABELS = (4, 5, 6, 7)


def one_hot(label: int) -> list[float]:
    return [float(grade == label) for grade in range(4)]


# Of a pair, the label is the token of its prompt less 8.
EXAMPLES = [Example([2, 8 + label, 3], [], one_hot(label), label) for label in range(4)]


def run(
    folder: Path,
    examples: list[Example] = EXAMPLES,
    *,
    stop_at: int = 0,
    ranking: Ranking | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """Train a fresh model, of three layers if some are frozen; `stop_at` raises KeyboardInterrupt at that step."""

    def on_step(step: int, _steps: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    stated = {"steps": 12, "batch_size": 2, "learning_rate": 0.02, "save_steps": 5, **changes}
    config = TrainConfig.model_validate(stated)
    model = make_micro_model(3 if config.frozen_layers else 1)
    report = Reporter(RunLog(folder / "log.jsonl", "stage"), on_step)
    settings = StageSettings("label_only_sft", config, 1, folder, LABELS, ranking=ranking)
    chosen = learn_linears(model, config.frozen_layers, config.lora_rank)
    with chosen if config.frozen_layers else nullcontext():
        train(model, examples, settings, report)
    return model


def differing(one: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    weights, others = one.state_dict(), other.state_dict()
    assert set(weights) == set(others)
    return [name for name in weights if not weights[name].equal(others[name])]


def label_probabilities(model: PreTrainedModel, example: Example) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(torch.tensor([example.prompt])).logits[0, -1]
    probabilities: torch.Tensor = logits.softmax(-1)[list(LABELS)]
    return probabilities


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    tokens = st.integers(1, 15)
    made = []
    for _ in range(draw(st.integers(1, 4))):
        label = draw(st.integers(0, 3))
        soft = draw(st.none() | st.just(one_hot(label)))
        completion = draw(st.lists(tokens, min_size=0 if soft else 1, max_size=4))
        size = len(completion)
        weights = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 20.0]), min_size=size, max_size=size))
        prompt = draw(st.lists(tokens, min_size=1, max_size=4))
        made.append(Example(prompt, completion, soft, label, weights=weights))
    return made


def slow_losses(logits: torch.Tensor, batch: list[Example]) -> tuple[float, float]:
    """Sum token by token, over the whole vocabulary: of an example's own rows, each predicts a token of its completion."""
    grade = 0.0
    tokens: list[float] = []
    rows = logits.double().log_softmax(-1).split([max(1, len(example.completion)) for example in batch])
    for row, example in zip(rows, batch, strict=True):
        soft = example.soft_label or [0.0] * 4
        grade -= sum(p * row[0, token].item() for p, token in zip(soft, LABELS, strict=True)) / len(batch)
        for column, token in enumerate(example.completion):
            if column or not example.soft_label:
                tokens.append(-row[column, token].item() * (example.weights or [1.0] * 9)[column])
    return grade, sum(tokens) / len(tokens) if tokens else 0.0


@given(examples(), st.integers(0, 2**31))
def test_losses_equal_a_plain_loop(made: list[Example], seed: int) -> None:
    batch = collate(list(enumerate(made)), 4, CONFIG)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*batch["targets"].shape, 16, generator=generator)
    found = tuple(loss.item() for loss in losses(logits, batch, LABELS))
    assert found == pytest.approx(slow_losses(logits, made), abs=1e-5)


def test_newest_complete_state_is_used_and_incomplete_ones_removed(tmp_path: Path) -> None:
    assert saved_state(tmp_path) is None
    for step, state in ((2, "{}"), (9, "{}"), (10, '{"global_'), (11, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert saved_state(tmp_path) == str(tmp_path / "checkpoint-9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-9"]


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    """Completions of different lengths: a mean of the micro-batches' means would weigh the tokens of short ones more."""
    mixed = [
        *EXAMPLES[:2],
        Example([2, 10, 3], [6, 1, 1, 1, 1, 1], None, 2),
        Example([2, 11, 3], [7, 9], one_hot(3), 3),
    ]
    sizes: dict[str, Any] = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    at_once = run(tmp_path / "at-once", mixed, **sizes)
    added_up = run(tmp_path / "added-up", mixed, **sizes, micro_batch=1)
    for name, weight in at_once.state_dict().items():
        assert torch.allclose(weight, added_up.state_dict()[name], atol=1e-5), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """Train without interruption, and return the weights."""
    return run(tmp_path_factory.mktemp("whole"))


# Before there is a state, between two, and after the last step, when the model is still to be written.
@pytest.mark.parametrize("stop_at", [3, 7, 12])
def test_resumed_training_gives_the_same_weights(
    tmp_path: Path, stop_at: int, whole: PreTrainedModel
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=stop_at)
    resumed = run(tmp_path / "cut")
    assert differing(whole, resumed) == []
    steps = [row["step"] for row in read_log(tmp_path / "cut" / "log.jsonl")]
    assert steps == sorted(set(steps))


def test_training_learns_grades_and_label_mass(tmp_path: Path) -> None:
    model = run(tmp_path / "stage", steps=60, save_steps=None)
    for example in EXAMPLES:
        before, after = (label_probabilities(each, example) for each in (make_micro_model(1), model))
        assert before.sum() < 0.5 < after[example.label] > 0.9
    rows = [row for row in read_log(tmp_path / "stage" / "log.jsonl") if "correlation" in row]
    assert rows[-1]["correlation"] > max(rows[0]["correlation"] or 0, 0.5)
    assert rows[-1]["grade_loss"] < rows[0]["grade_loss"]
    assert {row["trace_loss"] for row in rows} == {0.0}


def test_training_learns_traces_and_grades(tmp_path: Path) -> None:
    # The grade token that stands in the completion is another than the soft label's: it must not be learned.
    made = [Example([2, 8 + label, 3], [4, 15, 14], one_hot(label), label) for label in range(1, 4)]
    model = run(tmp_path / "stage", made, steps=60, save_steps=None)
    for example in made:
        assert label_probabilities(model, example)[example.label] > 0.9
        written = model.generate(
            torch.tensor([[*example.prompt, 4]]), max_new_tokens=2, do_sample=False, pad_token_id=0
        )
        assert written[0, -2:].tolist() == [15, 14]


RANKED = [replace(example, group="q") for example in EXAMPLES]
RANKING = Ranking("margin", 0.5, 2)


def test_ranking_is_added_to_the_loss_with_its_weight(tmp_path: Path) -> None:
    run(tmp_path / "stage", RANKED, steps=5, save_steps=None, ranking=RANKING)
    [row] = read_log(tmp_path / "stage" / "log.jsonl")
    assert row["ranking_loss"] > 0.1
    assert row["loss"] == pytest.approx(row["grade_loss"] + 0.5 * row["ranking_loss"], abs=1e-3)


def test_training_on_rankings_resumes(tmp_path: Path, whole: PreTrainedModel) -> None:
    ranked = run(tmp_path / "ranked", RANKED, ranking=RANKING)
    assert differing(whole, ranked) != []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", RANKED, stop_at=7, ranking=RANKING)
    assert differing(ranked, run(tmp_path / "killed", RANKED, ranking=RANKING)) == []


def test_rankings_are_learned_from_cached_activations(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frozen_layers": 2, "ranking": RANKING, "steps": 5, "save_steps": None}
    logged = []
    for kept in (False, True):
        run(tmp_path / f"{kept}", RANKED, keep_outputs=kept, **settings)
        logged += [row["ranking_loss"] for row in read_log(tmp_path / f"{kept}" / "log.jsonl")]
    assert logged[0] == pytest.approx(logged[1], rel=0.05)


def test_correlation_counts_no_unjudged_pair(tmp_path: Path) -> None:
    unjudged = [replace(example, label=UNJUDGED) for example in EXAMPLES]
    run(tmp_path / "stage", [*EXAMPLES[:1], *unjudged], steps=5, save_steps=None)
    # The only gold grade that is left does not vary: with any other the correlation would be a number.
    [row] = read_log(tmp_path / "stage" / "log.jsonl")
    assert row.get("correlation") is None


def test_log_of_a_stage_without_grades_has_no_correlation(tmp_path: Path) -> None:
    run(tmp_path / "stage", [Example([2], [9, 3], None, 0)], steps=5, save_steps=None)
    [row] = read_log(tmp_path / "stage" / "log.jsonl")
    assert row["trace_loss"] > 0
    assert "correlation" not in row


def test_training_on_cached_activations_gives_close_weights(tmp_path: Path) -> None:
    """Activations are cached in bfloat16, so weights are close and not equal; frozen weights are unchanged."""
    before = make_micro_model(3)
    plain = run(tmp_path / "plain", frozen_layers=2)
    kept = run(tmp_path / "kept", frozen_layers=2, keep_outputs=True)
    assert not (tmp_path / "kept" / OUTPUTS_NAME).exists()
    changed = differing(before, kept)
    assert changed == [name for name in before.state_dict() if "layers.2." in name and "proj" in name]
    for name in changed:
        start, *trained = (model.state_dict()[name].flatten() for model in (before, plain, kept))
        ours, theirs = (weight - start for weight in trained)
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98


def test_low_rank_training_learns_and_resumes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frozen_layers": 1, "lora_rank": 2, "keep_outputs": True}
    settings |= {"steps": 60, "learning_rate": 0.05}
    trained = run(tmp_path / "whole", **settings)
    for example in EXAMPLES:
        assert label_probabilities(trained, example)[example.label] > 0.5
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=7, **settings)
    assert differing(trained, run(tmp_path / "killed", **settings)) == []


def test_training_on_cached_activations_resumes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"frozen_layers": 2, "keep_outputs": True}
    whole = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=7, **settings)
    assert (tmp_path / "killed" / OUTPUTS_NAME).is_file()
    assert differing(whole, run(tmp_path / "killed", **settings)) == []

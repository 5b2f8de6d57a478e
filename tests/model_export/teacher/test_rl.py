"""The RL stage: what it keeps, when it stops, and that it resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from model_export.models.model_io import load_model
from model_export.run_log import read_log
from model_export.teacher.rl import BestWeights, ParseGuard, train_rl
from model_export.teacher.rl_trainer import RlTrainer
from model_export.teacher.rollout import Sampler, Sampling
from model_export.training.supervised import TrainingError
from tests.tiny_teacher import TinyTeacher, micro_job


@pytest.mark.parametrize(
    ("rates", "stops"),
    [([0.9, 0.4, 0.4, 0.4, 0.5], False), ([0.9, 0.4, 0.4, 0.4, 0.0], True), ([0.0] * 4, False)],
)
def test_training_stops_when_rollouts_no_longer_parse(rates: list[float], stops: bool) -> None:
    guard, control = ParseGuard(rates, 0.5), TrainerControl()
    guard.on_step_end(None, TrainerState(global_step=7), control)
    assert control.should_training_stop == stops
    assert (guard.message or "").startswith("RL stopped at step 7: 42% of the rollouts" if stops else "")


def train(
    teacher: TinyTeacher, folder: Path, *, stop_at: int = 0, rl: Mapping[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Train three steps, without dev pairs unless `rl` sets some, and return the weights.

    `stop_at` raises KeyboardInterrupt at that step.
    """

    def on_step(step: int, _steps: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    job = micro_job("rl", teacher.folder, folder, rl={"dev_pairs": 0, **(rl or {})})
    train_rl(teacher.others, teacher.others[:8], teacher.prompting, job, on_step)
    return {name: weight.detach() for name, weight in load_model(folder).named_parameters()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_stage_learns_and_is_logged(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    learned = train(tiny_teacher, tmp_path)
    assert differing(learned, dict(load_model(tiny_teacher.folder).named_parameters())) != []
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all({"reward", "parse_rate", "loss"} <= set(row) for row in rows)
    assert not (tmp_path / "state").exists()


def test_micro_batches_add_up_to_the_batch(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    at_once = train(tiny_teacher, tmp_path / "at-once")
    added_up = train(tiny_teacher, tmp_path / "added-up", rl={"micro_batch": 2})
    assert all(torch.allclose(at_once[name], added_up[name], atol=1e-4) for name in at_once)


# With two steps on the same rollouts, the second of which a state does not hold.
@pytest.mark.parametrize(("iterations", "stop_at"), [(1, 2), (2, 2), (2, 3)])
def test_stopped_stage_resumes_exactly(
    tiny_teacher: TinyTeacher, tmp_path: Path, iterations: int, stop_at: int
) -> None:
    rl = {"iterations": iterations}
    whole = train(tiny_teacher, tmp_path / "whole", rl=rl)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_teacher, tmp_path / "cut", rl=rl, stop_at=stop_at)
    resumed = train(tiny_teacher, tmp_path / "cut", rl=rl)
    assert differing(whole, resumed) == []


def test_best_weights_survive_a_kill_between_states(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    rl = {"dev_pairs": 8, "save_steps": 2, "eval_steps": 1, "learning_rate": 3e-3}
    whole = train(tiny_teacher, tmp_path / "whole", rl=rl)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_teacher, tmp_path / "cut", rl=rl, stop_at=3)
    assert list((tmp_path / "cut").glob("best-*"))
    assert differing(whole, train(tiny_teacher, tmp_path / "cut", rl=rl)) == []
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    assert not list((tmp_path / "cut").glob("best-*"))


def test_weights_with_the_best_dev_reward_are_kept(
    tiny_teacher: TinyTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rewards of the start and of three steps are given; each run takes the same steps."""
    after = {stop: train(tiny_teacher, tmp_path / f"last-{stop}", rl={"steps": stop}) for stop in (2, 3)}
    start = dict(load_model(tiny_teacher.folder).named_parameters())
    for rewards, expected in (([0, 1, 3, 2], after[2]), ([0, 1, 1, 2], after[3]), ([5, 1, 3, 2], start)):
        given = iter(rewards)
        monkeypatch.setattr(RlTrainer, "evaluate", lambda self, **_: evaluated(self, float(next(given))))  # noqa: B023
        found = train(tiny_teacher, tmp_path / "-".join(map(str, rewards)), rl={"dev_pairs": 8})
        assert differing(found, expected) == []
    assert "RL improves the reward of the dev pairs at no step" in caplog.text


def test_best_weights_that_a_resumed_stage_measures_again_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_trainer: object, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("of step 2", encoding="utf-8")

    monkeypatch.setattr("model_export.teacher.rl.write_weights", write)
    for reward in (
        1.0,
        1.5,
    ):  # a resumed stage measures its last step again, and another device a little higher
        best = BestWeights(tmp_path)
        best.on_evaluate(None, TrainerState(global_step=2, log_history=[{"eval_reward": reward}]), None)
    assert best.take()
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def evaluated(trainer: RlTrainer, reward: float) -> dict[str, float]:
    found = {"eval_reward": reward}
    trainer.log(dict(found))
    trainer.control = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, found
    )
    return found


def test_dev_reward_depends_on_the_weights_alone(tiny_teacher: TinyTeacher, tmp_path: Path) -> None:
    still = {"dev_pairs": 8, "learning_rate": 1e-12}
    train(tiny_teacher, tmp_path, rl=still)
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "eval_reward" in row]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert len({row["eval_reward"] for row in rows}) == 1


class Engine:
    """Takes the place of TRL's vLLM, whose CPU build can't take weights: samples from the trainer's model."""

    last: "Engine"

    def __init__(self, *, model: Any, generation_kwargs: dict[str, Any], **settings: Any) -> None:
        self.model, self.stop, self.settings = model, generation_kwargs["stop_token_ids"], settings
        self.temperature: float = settings["temperature"]
        self.syncs, self.seen = 0, set[tuple[bool, float]]()
        self.vllm_client = self
        Engine.last = self

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self) -> None:
        self.syncs += 1

    def generate(self, prompts: list[list[int]], **_: Any) -> tuple[Any, ...]:
        training = self.model.training
        self.seen.add((training, self.temperature))
        sampler = Sampler(self.model, (), self.stop[0])
        completions = sampler.sample(prompts, Sampling(48, self.temperature, len(prompts)))
        logprobs = [self._logprobs(*row) for row in zip(prompts, completions, strict=True)]
        self.model.train(training)
        return prompts, completions, logprobs, None

    def _logprobs(self, prompt: list[int], completion: list[int]) -> list[list[float]]:
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
        return [[value] for value in found[:, 0].tolist()]


@pytest.mark.parametrize(
    "rollouts", [{"memory_share": 0.4, "sleep": True}, {"mode": "server", "url": "http://a"}]
)
def test_rollouts_by_vllm_use_the_newest_weights_and_measure_greedily(
    tiny_teacher: TinyTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: dict[str, Any]
) -> None:
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    changes = {"rl": {"vllm": True, "dev_pairs": 4}, "launch": {"rollouts": rollouts}}
    job = micro_job("rl", tiny_teacher.folder, tmp_path, **changes)
    train_rl(tiny_teacher.others, tiny_teacher.others[:8], tiny_teacher.prompting, job, lambda *_: None)
    engine = Engine.last
    assert engine.seen == {(True, 1.0), (False, 0.0)}
    assert engine.syncs == 4  # before each step, and before the last measurement
    assert engine.stop == [tiny_teacher.prompting.end_token_id]
    assert engine.settings["mode"] == rollouts.get("mode", "colocate")
    assert engine.settings["enable_sleep_mode"] == rollouts.get("sleep", False)
    assert engine.settings["server_base_url"] == rollouts.get("url")
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl") if "loss" in row] == [1, 2, 3]


def test_collapse_without_dev_pairs_is_an_error(
    tiny_base: Path, tiny_teacher: TinyTeacher, tmp_path: Path
) -> None:
    job = micro_job(
        "rl", tiny_base, tmp_path, rl={"steps": 5, "dev_pairs": 0, "min_parse_rate": 0.5}
    )  # random weights write no trace
    with pytest.raises(TrainingError, match="RL stopped at step 5: 0% of the rollouts"):
        train_rl(tiny_teacher.others, [], tiny_teacher.prompting, job, lambda *_: None)

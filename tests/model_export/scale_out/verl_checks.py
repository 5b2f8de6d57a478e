"""Checks in verl's own classes, functions and configuration. test_verl_rl.py runs this file where verl can be imported."""

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from model_export.recipe_stages import RlConfig
from model_export.scale_out.verl_export import export_rows
from model_export.scale_out.verl_rl import PromptLoop
from model_export.scale_out.verl_rows import Task
from tests.processes import ROOT
from tests.step_groups import ANNOTATED, CRITERIA, END, HAND_WORKED, WRONG, by_place, tokens, trace_text
from tests.tiny_teacher import micro_recipe

pytestmark = pytest.mark.timeout(1200)

TASK = Task(ANNOTATED, CRITERIA, 1.5, END, RlConfig(steps=1))


@pytest.fixture(scope="module")
def rows(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    export_rows(micro_recipe(), folder, tiny_base, folder)
    return folder


@pytest.fixture
def config(rows: Path, tiny_base: Path) -> Any:
    """Compose the recipe with the command's overrides, as verl's main does."""
    with initialize_config_dir(str(ROOT / "recipes" / "verl"), version_base=None):
        return compose("grpo_step", [f"rows={rows}", f"actor_rollout_ref.model.path={tiny_base}"])


def test_verl_accepts_the_recipe(config: Any) -> None:
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert not need_reference_policy(config)
    assert not need_critic(config)
    assert get_trainer_cls(config.trainer.v1.trainer_mode).__name__ == "StepMaskTrainer"


def test_the_recipe_has_the_settings_of_the_stage_that_it_replaces(config: Any) -> None:
    full = tomllib.loads((ROOT / "recipes" / "full.toml").read_text(encoding="utf-8"))
    stated, rollouts = RlConfig.model_validate(full["rl"]), full["launch"]["rollouts"]
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    assert {
        "steps": trainer.total_training_steps,
        "prompts": config.data.train_batch_size,
        "rollouts": rollout.n,
        "micro_batch": actor.ppo_micro_batch_size_per_gpu,
        "learning_rate": actor.optim.lr,
        "temperature": rollout.temperature,
        "max_tokens": config.data.max_response_length,
        "save_steps": trainer.save_freq,
        "eval_steps": trainer.test_freq,
    }.items() <= stated.model_dump().items()
    assert (stated.loss, actor.loss_agg_mode, stated.beta, actor.use_kl_loss) == (
        "dapo",
        "token-mean",
        0.0,
        False,
    )
    assert (stated.scale_rewards, config.algorithm.adv_estimator) == ("batch", "grpo_batch")
    assert (stated.iterations, actor.ppo_epochs, actor.ppo_mini_batch_size) == (1, 1, stated.prompts)
    assert rollout.gpu_memory_utilization == rollouts["memory_share"]
    assert trainer.n_gpus_per_node == full["launch"]["processes"]
    assert rollout.max_model_len == config.data.max_prompt_length + stated.max_tokens
    assert config.data.seed == full["seed"]


def test_verl_loads_the_rows(config: Any, rows: Path, tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    row = RLHFDataset(str(rows / "train.parquet"), tokenizer, config.data)[0]
    assert row["raw_prompt"] == row["prompt"]
    assert all(isinstance(token, int) for token in row["raw_prompt"])
    assert Task.of_json(row["extra_info"]["task"]).pair.label == row["reward_model"]["ground_truth"]


class Server:
    """Answers with given tokens, in the place of verl's client of its vLLM servers."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        self.asked: dict[str, Any] = {}

    async def generate(self, **asked: Any) -> Any:
        self.asked = asked
        logprobs = [-0.5] * len(self._token_ids)
        return SimpleNamespace(token_ids=self._token_ids, log_probs=logprobs, extra_fields={})


def sampled(config: Any, tiny_base: Path, token_ids: list[int]) -> tuple[Any, Server]:
    """Let the loop sample a rollout of the prompt [5, 6, 7]; return its output and the server."""
    server = Server(token_ids)
    loop = PromptLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=server,
        tokenizer=AutoTokenizer.from_pretrained(tiny_base),
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
    )
    return asyncio.run(loop.run({"temperature": 1.0}, raw_prompt=[5, 6, 7], extra_info={})), server


def test_prompts_reach_the_engine_as_they_are(config: Any, tiny_base: Path) -> None:
    rollout = tokens(trace_text())
    output, server = sampled(config, tiny_base, rollout)
    assert server.asked["prompt_ids"] == [5, 6, 7]
    assert server.asked["sampling_params"] == {"temperature": 1.0, "stop_token_ids": [END]}
    made = output.as_dict()
    assert made["responses"].tolist() == rollout
    assert made["rollout_log_probs"].shape == made["response_mask"].shape == (len(rollout),)
    assert made["response_mask"].all()


@pytest.mark.parametrize(
    ("text", "complete", "expected"),
    [(trace_text(), True, 1.6), (trace_text(answer=0), True, 0.1), (trace_text(), False, 0.0)],
)
def test_verl_s_reward_manager_gives_our_reward(
    config: Any, tiny_base: Path, text: str, complete: bool, expected: float
) -> None:
    output, _ = sampled(config, tiny_base, tokens(text) if complete else tokens(text)[:-1])
    manager = load_reward_manager(config, AutoTokenizer.from_pretrained(tiny_base))
    responses = torch.tensor([output.response_ids])
    data = DataProto.from_dict(
        {"responses": responses, "attention_mask": torch.ones_like(responses)},
        {
            "data_source": ["made"],
            "reward_model": [{"ground_truth": 2}],
            "extra_info": [{"index": 0, "task": TASK.to_json()}],
            "tool_extra_fields": [output.extra_fields],
        },
    )
    found = manager.loop.run_until_complete(manager.run_single(data))
    assert found["reward_score"] == pytest.approx(expected)


def test_advantages_are_scaled_by_the_batch(config: Any) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    last = mask.cumsum(-1).argmax(-1)
    rewards = torch.zeros(4, 3)
    rewards[torch.arange(4), last] = torch.tensor([1.0, 4.0, 3.0, 2.0])
    data = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": mask}, {"uid": ["a", "b", "a", "b"]}
    )
    found = compute_advantage(data, config.algorithm.adv_estimator, config=config.algorithm)
    # Group a has the mean 2, group b 3; the deviation of 1, 2, 3, 4 is 1.291.
    expected = torch.tensor([-1.0, 1.0, 1.0, -1.0]) / (1.2910 + 1e-4)
    torch.testing.assert_close(found.batch["advantages"], expected[:, None] * mask, rtol=0, atol=1e-4)


@pytest.fixture
def queue(config: Any) -> Iterator[None]:
    """Start verl's queue of rollouts, on a Ray of its own."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    config.transfer_queue.backend.SimpleStorage.num_data_storage_units = 1
    tq.init(config.transfer_queue)
    yield
    tq.close()
    ray.shutdown()


def test_trainer_masks_the_groups_that_were_worked_by_hand(config: Any, queue: None) -> None:
    rows = [
        (f"uid{number}", session, text, reward, expected)
        for number, (shown, sign, places) in enumerate(HAND_WORKED)
        for session, (text, reward, expected) in enumerate(
            [(shown, float(sign > 0), places), (WRONG, float(sign < 0), None)]
        )
    ]
    Random(1).shuffle(rows)
    fields = []
    for uid, _, text, reward, _ in rows:
        ids = torch.tensor(tokens(text))
        scores = torch.zeros(len(ids))
        scores[-1] = reward
        row = {"uid": uid, "responses": ids, "response_mask": torch.ones_like(ids), "rm_scores": scores}
        fields.append({**row, "extra_info": {"index": 0, "task": TASK.to_json()}})
    keys = [f"{uid}_{session}_0" for uid, session, *_ in rows]
    batch = tq.kv_batch_put(
        keys, "train", list_of_dict_to_tensordict(fields), tags=[{"status": "success"} for _ in keys]
    )
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    metrics: dict[str, float] = {}
    trainer._compute_advantage(batch, metrics)
    found = tq.kv_batch_get(keys, "train", select_fields=["advantages"])["advantages"]
    # Half of the rewards are 1: the mean is 0.5 in each group, the deviation is the root of 12 / 11 / 4.
    size = 0.5 / ((12 / 11 / 4) ** 0.5 + 1e-4)
    for (*_, text, _, expected), values in zip(rows, found.unbind(), strict=True):
        if expected is not None:
            assert by_place(text, [round(value / size, 4) for value in values.tolist()]) == expected
    assert metrics["rollouts/parse_rate"] == 1.0
    assert OmegaConf.select(config, "trainer.v1.trainer_mode") == "sync"

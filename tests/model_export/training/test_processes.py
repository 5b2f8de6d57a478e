from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from model_export.recipe import LaunchConfig
from model_export.training.processes import save_trained, share


def test_processes_share_a_batch() -> None:
    def parts(launch: LaunchConfig, micro_batch: int | None = None) -> list[int]:
        found = share(launch, "distil", 16, micro_batch)
        return [found["per_device_train_batch_size"], found["gradient_accumulation_steps"]]

    assert parts(LaunchConfig()) == [16, 1]
    assert parts(LaunchConfig(processes=4)) == [4, 1]
    assert parts(LaunchConfig(processes=4), micro_batch=2) == [2, 2]


def test_stages_that_shard_get_fsdp_arguments_that_transformers_accepts(tmp_path: Path) -> None:
    launch = LaunchConfig(processes=2, fsdp=("cot_sft",))
    assert "fsdp" not in share(launch, "distil", 16, None)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **share(launch, "cot_sft", 16, 4))
    assert arguments.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["activation_checkpointing"] is True
    # Whole weights in one file, as they are without it.
    assert arguments.fsdp_plugin_args["state_dict_type"] == "FULL_STATE_DICT"


def test_one_process_writes_the_same_files_as_transformers(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.save_pretrained(tmp_path / "plain")
    state = tmp_path / "saved" / "state"
    state.mkdir(parents=True)
    arguments = TrainingArguments(output_dir=str(state), use_cpu=True, report_to="none")
    save_trained(Trainer(model, arguments), AutoTokenizer.from_pretrained(tiny_base), tmp_path / "saved")
    assert not state.exists()
    saved, plain = (tmp_path / folder / "model.safetensors" for folder in ("saved", "plain"))
    assert saved.read_bytes() == plain.read_bytes()
    assert (tmp_path / "saved" / "tokenizer.json").is_file()

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from model_export.recipe import LaunchConfig
from model_export.training.processes import save_trained, share


def test_processes_share_a_batch() -> None:
    assert share(LaunchConfig(), 16) == {"per_device_train_batch_size": 16}
    assert share(LaunchConfig(processes=4), 16) == {"per_device_train_batch_size": 4}


def test_fsdp_arguments_are_accepted_by_transformers(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, **share(LaunchConfig(processes=2, fsdp=True), 16)
    )
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

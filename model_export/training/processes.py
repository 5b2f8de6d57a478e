"""Divides training over several processes: the batch, the weights, and which process writes files."""

import shutil
from pathlib import Path
from typing import Any

from model_export.recipe import LaunchConfig


def share(launch: LaunchConfig, batch_size: int) -> dict[str, Any]:
    """Return a Trainer's arguments for one of the processes: its part of the batch and, with FSDP, of the weights.

    The recipe's batch stays the same for any number of processes; the recipe checks that they divide it evenly.
    """
    arguments: dict[str, Any] = {"per_device_train_batch_size": batch_size // launch.processes}
    if launch.fsdp:
        # Activations are recomputed in the backward pass: a large teacher's would not fit, and FSDP doesn't shard them.
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": True}}
    return arguments


def save_trained(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Write a transformers folder with the weights gathered from all processes, from the first process only.

    The saved state that training could have resumed from is removed.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        model.eval().save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()

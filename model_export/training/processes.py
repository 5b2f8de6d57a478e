"""Divides training over several processes: the batch, the weights, and which process writes files."""

import shutil
from pathlib import Path
from typing import Any

from model_export.recipe import LaunchConfig


def share(launch: LaunchConfig, stage: str, batch_size: int, micro_batch: int | None) -> dict[str, Any]:
    """Return a Trainer's arguments for one of a stage's processes: its part of the batch and, with FSDP, of the weights.

    The recipe's batch stays the same for any number of processes and any `micro_batch`, the examples that a process computes
    at once; the recipe checks that these divide it evenly.
    """
    own = batch_size // launch.processes
    at_once = micro_batch or own
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": own // at_once,
    }
    if stage in launch.fsdp:
        # Activations are recomputed in the backward pass: a large teacher's would not fit, and FSDP doesn't shard them.
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": True}}
        # Without it, each process would hold whole gradients until the last micro-batch.
        arguments["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return arguments


def save_trained(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Write a transformers folder with the weights gathered from all processes, from the first process only.

    The saved state that training could have resumed from is removed.
    """
    write_weights(trainer, folder)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def write_weights(trainer: Any, folder: Path) -> None:
    """Write the weights and the configuration. All processes must call it, because each may hold a part of the weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, state_dict=weights)

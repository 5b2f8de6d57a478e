"""What several training processes share out: the batch, the weights, and who writes."""

import shutil
from pathlib import Path
from typing import Any

from model_export.models.model_io import save_model
from model_export.recipe import LaunchConfig


def share(launch: LaunchConfig, batch_size: int) -> dict[str, Any]:
    """A Trainer's arguments for one of the processes: its part of the batch and, with FSDP, of the weights.

    The batch is the recipe's, however many processes share it; a recipe makes sure that they can, evenly.
    """
    arguments: dict[str, Any] = {"per_device_train_batch_size": batch_size // launch.processes}
    if launch.fsdp:
        # Activations are computed twice: those of a large teacher would not fit, and FSDP doesn't share them out.
        arguments |= {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": True}}
    return arguments


def save_trained(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Write what a Trainer has trained: gathered from all processes, by the first of them alone.

    The state that it would have gone on from is removed.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        save_model(model.eval(), tokenizer, folder, weights)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()

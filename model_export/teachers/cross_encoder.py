"""The cross-encoder: an encoder that reads query and note together, fine-tuned on gold grades. A control and a teacher.

It reads no criteria.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, set_seed

from model_export.data.pairs import GRADES, Pair, note_text
from model_export.data.sampling import pick
from model_export.models.encoders import EncoderError, load_encoder
from model_export.models.model_io import speed_up
from model_export.progress import OnProgress
from model_export.recipe import Precision
from model_export.recipe_stages import CrossEncoderConfig
from model_export.run_log import LOG_NAME, RunLog
from model_export.teachers.base import Features, Learner
from model_export.training.batches import plan_order
from model_export.training.stage_job import OnStep
from model_export.training.supervised import Reporter, saved_state, training_arguments

CROSS_ENCODER = "cross_encoder"
_CHUNK = 512  # pairs between two reports of progress


class CrossEncoderTeacher:
    """A teacher that learns gold grades by cross-entropy, in which all pairs weigh the same."""

    name = CROSS_ENCODER
    starts_from: Learner | None = None
    chunk: int | None = 1024
    parallel = True

    def __init__(self, config: CrossEncoderConfig, precision: Precision, seed: int) -> None:
        self._config = config
        self._precision: Precision = precision
        self._seed = seed
        self.settings: Mapping[str, object] = {
            "config": config.model_dump(exclude={"save_steps"}),
            "precision": precision,
            "seed": seed,
        }

    def train(self, pairs: Sequence[Pair], start: Path | None, folder: Path, on_progress: OnProgress) -> None:  # noqa: ARG002 - starts from the base
        """Fine-tune the base, or resume from the state saved in `folder`. Raises EncoderError for an unusable base."""
        config, seed = self._config, self._seed
        set_seed(seed)  # for the weights of the new head
        model = _load_base(config)
        speed_up(model.model, compiled=False)
        chosen = pick(pairs, config, seed)
        lengths = [len(pair.query) + len(note_text(pair.note)) for pair in chosen]
        order = plan_order(lengths, config.batch_size, config.steps, seed)
        sizes = {"per_device_train_batch_size": config.batch_size, "label_smoothing_factor": config.smoothing}
        report = Reporter(RunLog(folder / LOG_NAME, self.name), partial(on_progress, f"Train {self.name}"))
        trainer = Trainer(
            model.model,
            training_arguments(config, folder, seed, self._precision, **sizes),
            train_dataset=_encode(model.tokenizer, [chosen[index] for index in order]),
            data_collator=DataCollatorWithPadding(model.tokenizer),
            callbacks=[report],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=saved_state(folder / "state"))
        model.save_pretrained(str(folder), create_model_card=False)
        shutil.rmtree(folder / "state", ignore_errors=True)

    def load(self, model: Path, on_progress: OnProgress) -> Features:
        """Load the model, for (pairs, grades) features: log-probabilities. Raises EncoderError for another model's folder."""
        return load_trained(model, self._precision, partial(on_progress, f"Features of {self.name}"))


def load_trained(folder: Path, precision: Precision, on_batch: OnStep) -> Features:
    """Load a trained cross-encoder, which gives pairs the log-probability of each grade. Raises EncoderError."""
    model = load_encoder(str(folder), _load)
    if model.num_labels != len(GRADES):
        raise EncoderError(
            f"{folder.name} has {model.num_labels} as its number of outputs, which must be {len(GRADES)}, the number of "
            "grades: use the folder of a run's stage cross_encoder"
        )

    def log_probabilities(pairs: Sequence[Pair]) -> np.ndarray:
        logits = []
        for start in range(0, len(pairs), _CHUNK):
            chunk = [(pair.query, note_text(pair.note)) for pair in pairs[start : start + _CHUNK]]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits.append(
                    model.predict(chunk, activation_fn=torch.nn.Identity(), show_progress_bar=False)
                )
            on_batch(start + len(chunk), len(pairs))
        found: np.ndarray = log_softmax(np.vstack(logits).astype(np.float64), axis=1)
        return found

    return log_probabilities


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder holds a cross-encoder of sentence-transformers."""
    file = folder / "config_sentence_transformers.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("model_type") == "CrossEncoder"


def _load_base(config: CrossEncoderConfig) -> Any:
    """Load the base with a new output for each grade."""
    # Without the second option a trained reranker, which has one output, can't be a base.
    options: dict[str, Any] = {"num_labels": len(GRADES), "model_kwargs": {"ignore_mismatched_sizes": True}}
    model = load_encoder(config.base, partial(_load, **options))
    if model.max_seq_length is not None and config.max_tokens > model.max_seq_length:
        raise EncoderError(
            f"cross_encoder.max_tokens is {config.max_tokens:,}, and {config.base} reads at most {model.max_seq_length:,}"
        )
    model.max_seq_length = config.max_tokens
    return model


def _load(name: str, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Without the last argument it asks the hub about a folder such as `encoders/mine`.
    return CrossEncoder(name, device=device, local_files_only=Path(name).is_dir(), **options)


def _encode(tokenizer: Any, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Tokenise the pairs, with their gold grades as labels."""
    texts = [pair.query for pair in pairs], [note_text(pair.note) for pair in pairs]
    encoded = tokenizer(*texts, truncation=True)
    rows = (dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True))
    return [{**row, "labels": pair.label} for row, pair in zip(rows, pairs, strict=True)]

"""Reads and checks a checkpoint folder, so that an invalid one is refused before an engine starts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.labels import check_labels
from service.contract.manifest import ENCODER_NAME, Manifest, VectorReading, hash_file, read_manifest
from service.contract.probes import Probe, VectorProbe, read_probes, read_vector_probes
from service.contract.prompt import PromptRenderer
from service.contract.tokenizer import ContractTokenizer
from service.contract.vector_prompt import VectorRenderer
from service.errors import CheckpointError, ManifestError

REQUIRED_FILES = ("config.json", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class SecondReading:
    """A checkpoint's reading of notes as vectors, and the folder of the encoder that makes these."""

    reading: VectorReading
    renderer: VectorRenderer
    probes: tuple[VectorProbe, ...]
    encoder: Path

    @property
    def max_prompt_tokens(self) -> int:
        """Return the length of the longest prompt; a vector counts as a token."""
        return self.renderer.max_prefix_tokens + self.reading.per_note + len(self.renderer.cue)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of the folder without the weights. The model ends a trace with one of `end_token_ids`."""

    folder: Path
    manifest: Manifest
    tokenizer: ContractTokenizer
    renderer: PromptRenderer
    probes: tuple[Probe, ...]
    end_token_ids: tuple[int, ...]
    vectors: SecondReading | None = None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder and check its files, their hashes, the fingerprint, the labels and the probes.

    Reads every weight file once to hash it, which takes about a second per GB.
    Raises CheckpointError, or its subclasses ManifestError and LabelTokenError, with a message of one line.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    tokenizer = ContractTokenizer.load(folder)
    check_labels(manifest, tokenizer)
    return Checkpoint(
        folder,
        manifest,
        tokenizer,
        PromptRenderer(manifest, tokenizer),
        read_probes(folder, manifest),
        _end_token_ids(folder),
        _second_reading(folder, manifest, tokenizer),
    )


def _second_reading(folder: Path, manifest: Manifest, tokenizer: ContractTokenizer) -> SecondReading | None:
    if (reading := manifest.vectors) is None:
        return None
    renderer = VectorRenderer(
        reading.template, manifest.criteria, manifest.limits, reading.max_note_tokens, tokenizer
    )
    probes = read_vector_probes(folder, manifest, reading)
    for model in (folder, folder / ENCODER_NAME):
        if (found := _config(model).get("hidden_size")) != reading.width:
            raise ManifestError(
                f"{model / 'config.json'} has hidden_size {found}, the manifest's vectors have width {reading.width}"
            )
    return SecondReading(reading, renderer, probes, folder / ENCODER_NAME)


def _end_token_ids(folder: Path) -> tuple[int, ...]:
    # In transformers' config this field is one id, a list of ids, or missing.
    found = _config(folder).get("eos_token_id")
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _check_files(folder: Path, manifest: Manifest) -> None:
    encoder = (f"{ENCODER_NAME}/config.json",) if manifest.vectors else ()
    for name in (*REQUIRED_FILES, *encoder):
        if name not in manifest.files:
            raise ManifestError(f"the manifest of {folder} does not list {name}")
    weights = {str(Path(name).parent) for name in manifest.files if name.endswith(".safetensors")}
    if weights != {".", *(ENCODER_NAME for _ in encoder)}:
        raise ManifestError(f"the manifest of {folder} does not list .safetensors weights for each model")
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is not a complete checkpoint: {name} is missing")
        found = hash_file(path)
        if found != expected:
            raise CheckpointError(
                f"{path} is not the manifest's file: its hash is {found}, the manifest states {expected}"
            )

"""Makes small checkpoint folders with a real tokenizer, a real manifest, and weights that only a fake engine accepts."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution
from service.contract.manifest import Manifest, compute_fingerprint, hash_file
from service.contract.probes import Probe, ProbeNote, VectorProbe
from service.contract.prompt import Prompt, PromptRenderer
from service.contract.tokenizer import ContractTokenizer
from service.contract.vector_prompt import VectorPrompt, VectorRenderer
from service.engines.base import EngineModel
from service.engines.fake_engine import FakeEngine
from service.vectors.fake_encoder import FakeEncoder

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>")

PIECES: Sequence[dict[str, Any]] = (
    {"text": "<|im_start|>"},
    {"slot": "criteria"},
    {"text": "\nTitle:", "only_with": "title"},
    {"slot": "title", "lead": " "},
    {"text": "\nNote:"},
    {"slot": "body", "lead": " "},
    {"text": "\nQuery:"},
    {"slot": "query", "lead": " "},
    {"text": "<|im_end|>\nGrade: "},
)

VECTORS: dict[str, Any] = {
    "template": {
        "name": "vectors-tiny",
        "note": [dict(piece) for piece in PIECES[2:6]],
        "prefix": [dict(piece) for piece in (*PIECES[:2], *PIECES[6:8])],
        "padding": "\n",
        "block": 8,
        "cue": " ",
    },
    "per_note": 2,
    "width": 4,
    "max_note_tokens": 60,
    "probe_tolerance": {"float32": 0.001},
}

PROBES: Sequence[tuple[str, dict[str, str | None]]] = (
    ("quiet cafes", {"title": "Cafes", "body": "A quiet cafe with good light."}),
    ("quiet cafes", {"title": None, "body": ""}),
    ("東京 カフェ", {"title": "静かなカフェ", "body": "電源あり 🎧"}),
)


def tiny_tokenizer_json() -> str:
    """Make a byte-level BPE tokenizer with a few merges, ChatML's special tokens and one added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        ["Title Note Query Grade quiet cafe with a good light the and of"] * 3, trainer
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS[:2]))
    tokenizer.add_tokens([AddedToken(SPECIAL_TOKENS[2], special=False)])
    return str(tokenizer.to_str())


def bos_tokenizer_json() -> str:
    """Make the same tokenizer with `<bos>`, which it puts before every text that it encodes with special tokens, as Gemma's does."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer_json())
    tokenizer.add_special_tokens(["<bos>"])
    [bos] = tokenizer.encode("<bos>").ids
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    return str(tokenizer.to_str())


def manifest_data(folder: Path, tokenizer: ContractTokenizer) -> dict[str, Any]:
    """Return a complete manifest for the folder as JSON-like data. Call `sign` after changing it."""
    labels = [
        {
            "grade": grade,
            "token": str(grade),
            "token_id": tokenizer.encode_template(str(grade))[0],
            "gain": 2**grade - 1,
        }
        for grade in range(4)
    ]
    return {
        "format_version": 1,
        "name": "tiny-1",
        "created": "2026-01-01T00:00:00Z",
        "lineage": {"code_version": "0"},
        "base": {"name": "tiny", "licence": "Apache-2.0", "source": "made by a test"},
        "labels": labels,
        "template": {"name": "note-first-tiny", "pieces": [dict(piece) for piece in PIECES]},
        "criteria": [
            {"name": "general-1", "text": "Grade the note.", "steps": ["topic", "constraints"]},
            {"name": "strict-1", "text": "Grade the note, strictly and with care."},
        ],
        "limits": {"max_query_tokens": 64, "max_note_tokens": 48},
        "probe_tolerance": {"float32": 0.001},
        "files": {
            name: hash_file(folder / name) for name in ("config.json", "tokenizer.json", "model.safetensors")
        },
        "fingerprint": "sha256:" + "0" * 64,
    }


def sign(data: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest data with the fingerprint of its contents."""
    whole = Manifest.model_validate(data).model_dump(mode="json")
    return {**data, "fingerprint": compute_fingerprint(whole)}


def write_manifest(folder: Path, data: dict[str, Any]) -> None:
    """Write the data unchanged, whether its fingerprint is right or not."""
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def make_checkpoint(folder: Path, **changes: Any) -> Path:
    """Make a checkpoint folder whose probes FakeEngine reproduces. `changes` replace top-level keys of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"eos_token_id": 1, "hidden_size": 4}', encoding="utf-8")
    (folder / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    tokenizer = ContractTokenizer.load(folder)
    data = sign({**manifest_data(folder, tokenizer), **changes})
    write_manifest(folder, data)
    _write_probes(folder, Manifest.model_validate(data), tokenizer)
    return folder


def fake_engine_for(checkpoint: Checkpoint, max_silent_checks: int | None = None) -> FakeEngine:
    """Make a fake engine for this checkpoint."""
    return FakeEngine(engine_model(checkpoint), max_silent_checks)


def engine_model(checkpoint: Checkpoint, vector_width: int | None = None) -> EngineModel:
    """Return the facts about this checkpoint that an engine needs; `vector_width` replaces the checkpoint's."""
    if vector_width is None:
        vector_width = checkpoint.vectors.reading.width if checkpoint.vectors else 0
    return EngineModel(
        checkpoint.folder,
        checkpoint.manifest.label_token_ids,
        checkpoint.renderer.max_prompt_tokens,
        checkpoint.end_token_ids,
        max_trace_tokens=64,
        vector_width=vector_width,
    )


def make_vector_checkpoint(folder: Path, **changes: Any) -> Path:
    """Make a checkpoint that also reads notes as two vectors of four numbers. `changes` replace keys of `vectors`."""
    make_checkpoint(folder)
    (folder / "encoder").mkdir()
    (folder / "encoder" / "config.json").write_text('{"hidden_size": 4}', encoding="utf-8")
    (folder / "encoder" / "model.safetensors").write_bytes(b"weights of the encoder")
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    data["vectors"] = {**VECTORS, **changes}
    encoder = ("encoder/config.json", "encoder/model.safetensors")
    data["files"] |= {name: hash_file(folder / name) for name in encoder}
    data = sign(data)
    write_manifest(folder, data)
    _write_vector_probes(folder, Manifest.model_validate(data))
    return folder


def load_tiny(folder: Path, **changes: Any) -> Checkpoint:
    """Make a tiny checkpoint in the folder and load it."""
    return load_checkpoint(make_checkpoint(folder, **changes))


def _write_probes(folder: Path, manifest: Manifest, tokenizer: ContractTokenizer) -> None:
    renderer = PromptRenderer(manifest, tokenizer)
    engine = FakeEngine(EngineModel(folder, manifest.label_token_ids, renderer.max_prompt_tokens))
    lines = []
    for query, note in PROBES:
        blank = Probe(
            query=query,
            note=ProbeNote.model_validate(note),
            criteria=manifest.criteria[0].name,
            distribution=(0.5, 0.5),
            label_mass=0,
        )
        canonical_query, canonical_note = blank.canonical()
        [prompt] = renderer.render(canonical_query, [canonical_note], blank.criteria)
        expected = LabelDistribution.from_logprobs(engine.logprobs(prompt.token_ids))
        whole = blank.model_copy(
            update={"distribution": expected.probabilities, "label_mass": expected.label_mass}
        )
        lines.append(whole.model_dump_json() + "\n")
    (folder / "probes.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_vector_probes(folder: Path, manifest: Manifest) -> None:
    reading = manifest.vectors
    assert reading
    tokenizer = ContractTokenizer.load(folder)
    renderer = VectorRenderer(
        reading.template, manifest.criteria, manifest.limits, reading.max_note_tokens, tokenizer
    )
    model = EngineModel(folder, manifest.label_token_ids, 0, vector_width=reading.width)
    encoder = FakeEncoder(reading.per_note, reading.width)
    lines = []
    for line in (folder / "probes.jsonl").read_text(encoding="utf-8").splitlines():
        probe = Probe.model_validate_json(line)
        query, note = probe.canonical()
        rows = encoder.rows(renderer.notes([note])[0].token_ids)
        prompt = VectorPrompt(renderer.prefix(query, probe.criteria), rows, renderer.cue)
        expected = LabelDistribution.from_logprobs(FakeEngine(model).logprobs(prompt))
        known = {"distribution": expected.probabilities, "label_mass": expected.label_mass}
        whole = VectorProbe(**(probe.model_dump() | known), vectors=base64.b64encode(rows))
        lines.append(whole.model_dump_json() + "\n")
    (folder / "vector_probes.jsonl").write_text("".join(lines), encoding="utf-8")


def explained_by(checkpoint: Checkpoint, prompt: Prompt, grade: int) -> tuple[int, ...]:
    """Return the token ids after which the model writes why the pair of this prompt has this grade."""
    [cue] = checkpoint.tokenizer.encode_user_texts(["\nSteps:\n"])
    return (*prompt.token_ids, checkpoint.manifest.label_token_ids[grade], *cue.token_ids)

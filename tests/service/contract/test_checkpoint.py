import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.contract.checkpoint import load_checkpoint
from service.contract.manifest import Manifest, compute_fingerprint, hash_file, read_manifest
from service.errors import CheckpointError, LabelTokenError, ManifestError
from tests.checkpoints import VECTORS, make_checkpoint, make_vector_checkpoint, sign, write_manifest

REFITTED = {"calibration": {"name": "t-1", "method": "temperature", "temperature": 2.0}}
UTILITIES = [[float(true == chosen) for chosen in range(4)] for true in range(4)]


def decided(rows: list[list[float]], **notes: Any) -> dict[str, Any]:
    return {"decisions": [{"criteria": "general-1", "utilities": rows, **notes}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


def edit(folder: Path, change: Callable[[dict[str, Any]], None], *, signed: bool = True) -> None:
    data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    write_manifest(folder, sign(data) if signed else data)


def test_valid_checkpoint_loads(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert checkpoint.manifest.name == "tiny-1"
    assert len(checkpoint.probes) == 3
    assert checkpoint.renderer.default_criteria == "general-1"


def test_manifest_round_trips(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: manifest\.json can't be read"):
        load_checkpoint(tmp_path)


def test_manifest_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ManifestError, match="is not valid JSON"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "probes.jsonl"])
def test_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_changed_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the manifest's file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format_version=0), "has format version 0; this release reads 1"),
        (lambda data: data.update(format_version=2), "has format version 2; this release reads 1"),
        (lambda data: data.update(format_version="1"), "has format version '1'; this release reads 1"),
        (lambda data: data.update(format_version=None), "has format version None; this release reads 1"),
        (
            lambda data: data.update(limits={"max_query_tokens": 9, "max_note_tokens": 9}),
            "states fingerprint sha256:",
        ),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["labels"].reverse(), "in order"),
        (lambda data: data["labels"][0].update(gain=9), "gains must not fall"),
        (lambda data: data["template"]["pieces"].pop(), "must end with a cue"),
        (lambda data: data["template"]["pieces"].pop(1), "each of criteria, query, title, body once"),
        (lambda data: data["criteria"].append(data["criteria"][0]), "must be distinct"),
        (lambda data: data.update(calibration={"temperature": 2.0}), "takes no temperature"),
        (lambda data: data["files"].update({"../outside": data["fingerprint"]}), "pattern"),
    ],
)
def test_manifest_that_breaks_the_contract_is_refused_in_one_line(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(folder, change, signed=False)
    with pytest.raises(ManifestError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: data["files"].pop("config.json"), ManifestError, r"does not list config\.json"),
        (
            lambda data: data["files"].pop("model.safetensors"),
            ManifestError,
            r"does not list \.safetensors weights",
        ),
        (lambda data: data["labels"][0].update(token="10"), LabelTokenError, "label '10'"),
    ],
)
def test_signed_manifest_that_does_not_match_its_folder_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], error: type[CheckpointError], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(error, match=message):
        load_checkpoint(folder)


@pytest.fixture
def with_vectors(tmp_path: Path) -> Path:
    return make_vector_checkpoint(tmp_path / "with-vectors")


def test_a_checkpoint_with_vectors_loads_both_readings(with_vectors: Path, folder: Path) -> None:
    second = load_checkpoint(with_vectors).vectors
    assert second
    assert second.encoder == with_vectors / "encoder"
    assert [len(probe.vectors) for probe in second.probes] == [2 * 2 * 4] * 3
    assert load_checkpoint(folder).vectors is None
    assert load_checkpoint(folder).manifest.encoder_fingerprint == ""


@pytest.mark.parametrize("name", ["encoder/config.json", "encoder/model.safetensors", "vector_probes.jsonl"])
def test_missing_file_of_the_encoder_is_refused_by_name(with_vectors: Path, name: str) -> None:
    (with_vectors / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_checkpoint(with_vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("vectors"), "`vectors` and the files of its encoder, or neither"),
        (
            lambda data: [
                data["files"].pop(f"encoder/{name}") for name in ("config.json", "model.safetensors")
            ],
            "`vectors` and the files of its encoder, or neither",
        ),
        (lambda data: data["files"].pop("encoder/config.json"), r"does not list encoder/config\.json"),
        (lambda data: data["files"].pop("encoder/model.safetensors"), r"does not list \.safetensors weights"),
        (lambda data: data["vectors"]["template"].update(padding="two tokens"), "must be one token"),
        (lambda data: data["vectors"]["template"]["note"].pop(1), "note needs each of body, title once"),
        (lambda data: data["vectors"].update(width=5), "vectors of another number or width"),
        (lambda data: data["vectors"].update(per_note=1), "vectors of another number or width"),
        (
            lambda data: data["vectors"].update(decided(UTILITIES[:2])),
            "needs a row and a column of utilities",
        ),
        (
            lambda data: data["vectors"].update(
                calibration={**REFITTED["calibration"], "temperatures": {"x": 1}}
            ),
            "temperatures must be for criteria of this manifest",
        ),
    ],
)
def test_a_second_reading_that_does_not_fit_is_refused(
    with_vectors: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = json.loads((with_vectors / "manifest.json").read_text(encoding="utf-8"))
    change(data)
    with suppress(ValidationError):  # else it is refused before its fingerprint is read
        data = sign(data)
    write_manifest(with_vectors, data)
    with pytest.raises(ManifestError, match=message):
        load_checkpoint(with_vectors)


@pytest.mark.parametrize("name", ["config.json", "encoder/config.json"])
def test_vectors_of_another_width_than_the_models_are_refused(with_vectors: Path, name: str) -> None:
    (with_vectors / name).write_text('{"hidden_size": 8}', encoding="utf-8")
    edit(with_vectors, lambda data: data["files"].update({name: hash_file(with_vectors / name)}))
    with pytest.raises(
        ManifestError, match=rf"{name} has hidden_size 8, the manifest's vectors have width 4"
    ):
        load_checkpoint(with_vectors)


def test_the_hashes_cover_the_second_reading(with_vectors: Path, tmp_path: Path) -> None:
    before = read_manifest(with_vectors)
    data = before.model_dump(mode="json")
    refitted = Manifest.model_validate({**data, "vectors": {**data["vectors"], **REFITTED}})
    assert compute_fingerprint(refitted.model_dump(mode="json")) == before.fingerprint
    assert refitted.encoder_fingerprint == before.encoder_fingerprint
    assert refitted.grading_version != before.grading_version
    shorter = read_manifest(make_vector_checkpoint(tmp_path / "shorter", max_note_tokens=50))
    assert shorter.fingerprint != before.fingerprint
    assert shorter.encoder_fingerprint != before.encoder_fingerprint
    normalised = {**data, "files": {**data["files"], "tokenizer.json": f"sha256:{'0' * 64}"}}
    assert Manifest.model_validate(normalised).encoder_fingerprint != before.encoder_fingerprint
    # The reader's side of the template does not change a note's vectors.
    template = {**VECTORS["template"], "block": 16}
    wider = read_manifest(make_vector_checkpoint(tmp_path / "wider", template=template))
    assert wider.fingerprint != before.fingerprint
    assert wider.encoder_fingerprint == before.encoder_fingerprint


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no probe"),
        ('{"query": "q"}', "line 1 is not valid"),
        (
            '{"query":"q","note":{},"criteria":"general-1","distribution":[0.5,0.5],"label_mass":1}',
            "does not match the manifest's labels",
        ),
        (
            '{"query":"q","note":{},"criteria":"other","distribution":[0.1,0.2,0.3,0.4],"label_mass":1}',
            "does not match the manifest's labels and criteria",
        ),
    ],
)
def test_bad_probes_are_refused(folder: Path, lines: str, message: str) -> None:
    (folder / "probes.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        REFITTED,
        {"calibration": {**REFITTED["calibration"], "temperatures": {"strict-1": 3.0}}},
        decided(UTILITIES),
        decided(UTILITIES[::-1]),
    ],
)
def test_grading_version_changes_with_calibration_and_decisions(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    before, after = read_manifest(folder), read_manifest(make_checkpoint(tmp_path / "other", **change))
    assert after.fingerprint == before.fingerprint
    assert after.grading_version != before.grading_version
    assert len({*map(len, (after.grading_version, after.fingerprint))}) == 1


def test_grading_version_ignores_names_and_measured_figures(tmp_path: Path) -> None:
    renamed = {**REFITTED["calibration"], "name": "t-2", "ece_before": 0.1, "data": "other pairs"}
    changes = (
        {"name": "one", **REFITTED, **decided(UTILITIES)},
        {"name": "two", "calibration": renamed, **decided(UTILITIES, goal="other words", after=0.5)},
    )
    one, two = (read_manifest(make_checkpoint(tmp_path / change["name"], **change)) for change in changes)
    assert one.grading_version == two.grading_version


def test_limits_of_criteria_are_in_the_fingerprint_only_if_there_are_any(folder: Path) -> None:
    data = read_manifest(folder).model_dump(mode="json")
    assert all("limits" not in criteria for criteria in data["criteria"])
    limits = {"max_query_tokens": 9, "max_note_tokens": 9}
    data["criteria"][0]["limits"] = limits
    fingerprint = compute_fingerprint(data)
    assert fingerprint != data["fingerprint"]
    found = Manifest.model_validate({**data, "fingerprint": fingerprint})
    assert found.model_dump(mode="json")["criteria"][0]["limits"] == limits


def test_fingerprint_changes_with_numbers_and_not_with_calibration(folder: Path) -> None:
    data = read_manifest(folder).model_dump(mode="json")
    assert compute_fingerprint({**data, **REFITTED, "name": "other"}) == compute_fingerprint(data)
    for key in ("labels", "template", "criteria", "limits", "files"):
        changed = json.loads(json.dumps(data))
        changed[key] = {"changed": changed[key]}
        assert compute_fingerprint(changed) != compute_fingerprint(data), key

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from model_export.checkpoint.adapter import DEFAULT_ADAPTER, AdapterError, describe_adapter
from model_export.checkpoint.assemble import Plan, PlanError, assemble
from model_export.checkpoint.new_folder import FolderExistsError
from model_export.checkpoint.writer import INT8_PROBE_TOLERANCE
from model_export.data.criteria import load_criteria
from model_export.data.template import TemplateError, find_template
from model_export.models.base_model import BaseModelError
from model_export.models.reference_scorer import ReferenceScorer
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.labels import LabelDistribution
from service.contract.probes import PROBES_NAME, Probe, check_probes, largest_difference
from service.errors import LabelTokenError, ProbeMismatchError
from tests.tiny_adapter import describe, make_adapter
from tests.tiny_base import make_tiny_base


def render(checkpoint: Checkpoint, probe: Probe) -> tuple[int, ...]:
    query, note = probe.canonical()
    [prompt] = checkpoint.renderer.render(query, [note], probe.criteria)
    return prompt.token_ids


def test_service_accepts_the_folder(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert [label.token for label in checkpoint.manifest.labels] == ["0", "1", "2", "3"]
    assert [label.gain for label in checkpoint.manifest.labels] == [0, 1, 3, 7]
    assert checkpoint.manifest.name == "tiny-base-zero-shot"
    assert checkpoint.manifest.base.licence == "cc0-1.0"
    assert len(checkpoint.probes) == 32
    card = (tiny_checkpoint / "README.md").read_text(encoding="utf-8")
    assert checkpoint.manifest.fingerprint in card
    assert checkpoint.manifest.grading_version in card
    assert "Not trained for relevance" in card


def test_weights_equal_the_base_in_float32(tiny_checkpoint: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file

    made, base = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tiny_base))
    assert made.keys() == base.keys()
    assert all(
        made[name].dtype == base[name].dtype and bool((made[name] == base[name]).all()) for name in base
    )


def test_probes_reproduce_from_the_saved_folder(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    scorer = ReferenceScorer.load(tiny_checkpoint, checkpoint.manifest.label_token_ids)
    prompts = [render(checkpoint, probe) for probe in checkpoint.probes]
    assert check_probes(checkpoint.probes, list(scorer.distributions(prompts)), 1e-5) <= 1e-5


def test_probes_differ_enough_to_detect_a_wrong_engine(tiny_checkpoint: Path) -> None:
    probes = load_checkpoint(tiny_checkpoint).probes
    found = [LabelDistribution(probe.distribution, probe.label_mass) for probe in reversed(probes)]
    assert max(map(largest_difference, probes, found)) > 0.05


def test_int8_differs_from_float32_by_rounding_only(
    tiny_plan: Plan, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    made = load_checkpoint(assemble(dataclasses.replace(tiny_plan, int8=True), tmp_path / "int8"))
    full = load_checkpoint(tiny_checkpoint)
    assert (made.manifest.quantization, made.manifest.probe_tolerance) == ("w8a8", INT8_PROBE_TOLERANCE)
    assert made.manifest.fingerprint != full.manifest.fingerprint
    scorer = ReferenceScorer.load(made.folder, made.manifest.label_token_ids)
    prompts = [render(full, probe) for probe in full.probes]
    found = list(scorer.distributions(prompts))
    assert 0 < check_probes(full.probes, found, 0.1) < 0.1
    assert check_probes(made.probes, found, 1e-5) <= 1e-5


def test_default_plan_gives_the_same_fingerprint(
    tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The packaged template and criteria are the default, and are those of the tiny plan."""
    again = assemble(Plan(str(tiny_base)), tmp_path / "again")
    assert (
        load_checkpoint(again).manifest.fingerprint == load_checkpoint(tiny_checkpoint).manifest.fingerprint
    )
    assert (again / "probes.jsonl").read_bytes() == (tiny_checkpoint / "probes.jsonl").read_bytes()


def test_folder_contains_no_path_of_the_machine(tiny_checkpoint: Path, tiny_base: Path) -> None:
    for path in tiny_checkpoint.iterdir():
        assert str(tiny_base.parent).encode() not in path.read_bytes(), path.name
    settings = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"is_local", "local_files_only", "name_or_path"} & set(settings)


def test_folder_is_readable_by_every_user(tiny_checkpoint: Path) -> None:
    assert [path.name for path in tiny_checkpoint.iterdir() if path.stat().st_mode & 0o444 != 0o444] == []
    umask = os.umask(0)
    os.umask(umask)
    assert tiny_checkpoint.stat().st_mode & 0o777 == 0o777 & ~umask


def test_progress_reports_each_stage(tiny_plan: Plan, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    assemble(tiny_plan, tmp_path / "out", on_progress=lambda *step: seen.append(step))
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "Load tiny-base",
        "Write weights and tokenizer",
        "Compute probes",
        "Check the folder",
    ]
    assert all(0 <= done < total for _, done, total in seen)


def test_existing_checkpoint_is_replaced_only_by_force(
    tiny_plan: Plan, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_checkpoint, out)
    (out / "leftover").touch()
    with pytest.raises(FolderExistsError, match="--force"):
        assemble(tiny_plan, out)
    assert (out / "leftover").exists()
    assemble(tiny_plan, out, force=True)
    assert not (out / "leftover").exists()
    assert load_checkpoint(out).probes


def no_digits(_spec: dict[str, Any]) -> str:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Grade": 1, ":": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return str(words.to_str())


def spelled_two(spec: dict[str, Any]) -> str:
    return json.dumps(
        {**spec, "normalizer": {"type": "Replace", "pattern": {"String": "2"}, "content": "two"}}
    )


def no_control_tokens(spec: dict[str, Any]) -> str:
    return json.dumps({**spec, "added_tokens": []})


@pytest.mark.parametrize(
    ("tokenizer", "template", "error", "complaint"),
    [
        (no_digits, "note-first-plain-1", LabelTokenError, "distinct"),
        (spelled_two, "note-first-1", LabelTokenError, "label '2' must be one token"),
        (no_control_tokens, "note-first-1", TemplateError, r"<\|im_start\|>.*note-first-plain-1"),
    ],
)
def test_base_whose_tokenizer_does_not_fit_is_refused(
    tokenizer: Callable[[dict[str, Any]], str],
    template: str,
    error: type[Exception],
    complaint: str,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    spec = json.loads((tiny_base / "tokenizer.json").read_text(encoding="utf-8"))
    base = make_tiny_base(tmp_path / "base", tokenizer_json=tokenizer(spec))
    with pytest.raises(error, match=complaint):
        assemble(Plan(str(base), find_template(template)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_base_with_too_short_a_context_is_refused(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "short", max_positions=256)
    with pytest.raises(BaseModelError, match="context has 256"):
        assemble(Plan(str(base)), tmp_path / "out")


@pytest.mark.engine
def test_default_checkpoint_is_the_packaged_model(default_checkpoint: Checkpoint) -> None:
    manifest = default_checkpoint.manifest
    assert manifest.label_token_ids == (32, 33, 34, 35)
    assert manifest.base.licence == "Apache-2.0"
    scorer = ReferenceScorer.load(default_checkpoint.folder, manifest.label_token_ids)
    shipped, served = (folder / PROBES_NAME for folder in (DEFAULT_ADAPTER, default_checkpoint.folder))
    assert served.read_bytes() == shipped.read_bytes()
    probes = default_checkpoint.probes[::8]
    prompts = [render(default_checkpoint, probe) for probe in probes]
    assert check_probes(probes, list(scorer.distributions(prompts)), 1e-4) <= 1e-4
    # Much of the probability is on a grade, so the cue works.
    assert min(probe.label_mass for probe in default_checkpoint.probes) > 0.4


@pytest.fixture(scope="module")
def tiny_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("adapters") / "adapter")


def test_adapter_is_merged_and_brings_its_prompt_and_calibration(
    tiny_base: Path, tiny_adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = assemble(Plan(str(tiny_base), adapter=tiny_adapter), tmp_path / "out")
    checkpoint, described = load_checkpoint(out), describe()
    manifest = checkpoint.manifest
    assert (manifest.name, manifest.template.name) == (described.name, described.template)
    assert (manifest.criteria, manifest.limits) == (described.criteria, described.limits)
    assert (manifest.calibration, manifest.lineage) == (described.calibration, described.lineage)
    assert (manifest.dev_metrics, manifest.base.name) == (described.dev_metrics, "tiny-base")
    weights = "model.safetensors"
    assert manifest.files[weights] != load_checkpoint(tiny_checkpoint).manifest.files[weights]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Not trained for relevance" not in card
    assert "made-up pairs, cc0-1.0" in card


def test_adapter_s_probes_are_copied_and_not_computed_here(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    seen: list[str] = []
    plan = Plan(str(tiny_base), adapter=tiny_adapter)
    out = assemble(plan, tmp_path / "out", on_progress=lambda stage, *_: seen.append(stage))
    assert (out / PROBES_NAME).read_bytes() == (tiny_adapter / PROBES_NAME).read_bytes()
    assert "Compute probes" not in seen
    int8 = assemble(dataclasses.replace(plan, int8=True), tmp_path / "int8")
    assert (int8 / PROBES_NAME).read_bytes() != (tiny_adapter / PROBES_NAME).read_bytes()


def test_a_machine_that_does_not_reproduce_the_adapter_s_probes_is_refused(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    first, *others = (adapter / PROBES_NAME).read_text(encoding="utf-8").splitlines()
    wrong = {**json.loads(first), "label_mass": 0.5}
    (adapter / PROBES_NAME).write_text("\n".join([json.dumps(wrong), *others]), encoding="utf-8")
    describe_adapter(adapter, describe())
    with pytest.raises(ProbeMismatchError, match=r"1 of 4 probes differ by more than 0\.002"):
        assemble(Plan(str(tiny_base), adapter=adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapter_of_a_pruned_base_uses_its_layers_only(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(Path(f"{tiny_base}:1"), tmp_path / "adapter", base=f"{tiny_base.name}:1")
    folders = [
        assemble(Plan(str(base), adapter=adapter), tmp_path / name)
        for name, base in (("named", f"{tiny_base}:1"), ("found", tiny_base))
    ]
    one, two = (load_checkpoint(folder).manifest for folder in folders)
    assert one.fingerprint == two.fingerprint
    assert one.base.name == f"{tiny_base.name}:1"
    assert json.loads((folders[1] / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 1


def test_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_base, tmp_path / "adapter", base="other-base")
    with pytest.raises(AdapterError, match="trained for the base other-base, not tiny-base"):
        assemble(Plan(str(tiny_base), adapter=adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "own", [{"template": find_template("note-first-1")}, {"criteria": load_criteria("general-1")}]
)
def test_adapter_with_another_template_or_criteria_is_refused(
    own: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="an adapter brings its own template and criteria"):
        assemble(Plan(str(tiny_base), adapter=tmp_path / "adapter", **own), tmp_path / "out")

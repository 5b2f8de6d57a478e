import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.infinity import LOCK, Infinity, install
from load_tests.processes import Unavailable
from service.contract.checkpoint import Checkpoint


def answer() -> dict[str, Any]:
    """Make an answer like infinity-emb 0.0.78: the classes of each text, the most probable first."""
    first = [("3", 0.4), ("2", 0.3), ("1", 0.2), ("0", 0.1)]
    second = [("0", 0.7), ("3", 0.15), ("1", 0.1), ("2", 0.05)]
    data = [[{"score": score, "label": label} for label, score in found] for found in (first, second)]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {"object": "classify", "data": data, "model": "model", "usage": usage, "id": "infinity-1"}


def test_classes_are_sorted_by_grade(tiny: Checkpoint) -> None:
    raw = ([0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.05, 0.15])
    assert Infinity(tiny, "tuned").grades(answer()) == pytest.approx([calibrated_grade(r, tiny) for r in raw])


def test_texts_and_cue_tokenise_to_the_prompts(tiny: Checkpoint, request_of_three: Request) -> None:
    path, sent = Infinity(tiny, "tuned").call(request_of_three)
    cue = tiny.manifest.template.cue
    # infinity strips its input.
    prompts = [tiny.tokenizer.encode_template(text.strip() + cue) for text in sent["input"]]
    assert path == "/classify"
    assert tuple(prompts) == request_of_three.prompts


def test_quantized_weights_are_refused(tiny: Checkpoint) -> None:
    manifest = tiny.manifest.model_copy(update={"quantization": "w8a8"})
    peer = Infinity(dataclasses.replace(tiny, manifest=manifest), "tuned")
    with pytest.raises(Unavailable, match="quantized"), peer.running():
        pass


def test_environment_is_installed_from_the_lock_with_cpu_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="UV_FIND_LINKS=/nowhere\0", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert install(tmp_path / "venv") == tmp_path / "venv" / "bin" / "infinity_emb"
    _, made, torch, rest = commands
    assert "venv" in made
    assert torch[-3:-1] == ["--torch-backend", "cpu"]
    assert torch[-1].startswith("torch==")
    assert rest[-2:] == ["-r", str(LOCK)]


def test_error_of_uv_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_FIND_LINKS", "")
    with pytest.raises(Unavailable, match=r"(?s)infinity-emb can't be installed: error: .*torch"):
        install(tmp_path / "venv")


def test_lock_pins_every_package_once() -> None:
    names = [line.partition("==") for line in LOCK.read_text(encoding="utf-8").splitlines()]
    assert all(version for _, _, version in names)
    assert len({name for name, _, _ in names}) == len(names)
    assert not any("+" in version for _, _, version in names)  # a local build, which no index has

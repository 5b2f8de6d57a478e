"""Runs infinity-emb, a server for small embedders, rerankers and classifiers.

It gets the same prompts by /classify, as texts that it tokenises itself. /rerank is not used: for infinity a reranker has a single
class and no instruction, so its prompts would be shorter and its answers would not be grades.

It needs transformers 4, so it has its own virtual environment, build/infinity, which is made from infinity.lock.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_tests.bench.peer import Request, Tuning
from load_tests.bench.peers.faster_dtype import ask_faster_dtype
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.processes import Running, Server, Unavailable, free_port, run_server
from service.contract.checkpoint import Checkpoint

ROOT = Path(__file__).parents[3]
LOCK = Path(__file__).with_name("infinity.lock")
_QUIET = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Infinity:
    """Infinity's torch engine; out of the box it uses float32 and batches of 32."""

    checkpoint: Checkpoint
    tuning: Tuning
    name: str = "infinity-emb /classify"

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Install it at first use, and start it. Raises Unavailable when it can't be installed or load the weights."""
        if self.checkpoint.manifest.quantization:
            raise Unavailable("infinity-emb does not load quantized weights")
        command = install()
        with tempfile.TemporaryDirectory(prefix="notegrade-infinity-") as model:
            convert = [sys.executable, "-m", "load_tests.bench.peers.infinity_model"]
            subprocess.run([*convert, str(self.checkpoint.folder), model], check=True)
            port = free_port()
            options = ["--model-id", model, "--host", "127.0.0.1", "--port", str(port)]
            engine = ["--engine", "torch", "--device", "cpu", *self._tuned()]
            environment = {**_QUIET, "INFINITY_HOME": model, **os.environ}
            with run_server(Server([str(command), "v2", *options, *engine], environment, port)) as running:
                yield running

    def _tuned(self) -> list[str]:
        if self.tuning == "default":
            return []
        # It sorts its queue by length: by default in characters, with this flag in tokens.
        dtype = ask_faster_dtype(self.checkpoint.folder)
        return ["--dtype", dtype, "--batch-size", "16", "--lengths-via-tokenize"]

    def call(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Send all prompts, as texts without the cue, which the tokenizer appends."""
        end = -len(self.checkpoint.tokenizer.encode_template(self.checkpoint.manifest.template.cue))
        texts = [self.checkpoint.tokenizer.decode(prompt[:end]) for prompt in request.prompts]
        return "/classify", {"input": texts}

    def grades(self, answer: Any) -> list[float]:
        """Read the grades from the classes' probabilities, which are sorted by probability."""
        grades = []
        for classes in answer["data"]:
            by_grade = sorted((int(each["label"]), float(each["score"])) for each in classes)
            grades.append(calibrated_grade([score for _, score in by_grade], self.checkpoint))
        return grades


def install(folder: Path = ROOT / "build" / "infinity") -> Path:
    """Return the `infinity_emb` command, installed as locked. Raises Unavailable when that fails."""
    # uv does not read pip's settings, so they are passed as variables.
    script = [sys.executable, str(ROOT / "scripts" / "pip_settings_for_uv.py")]
    found = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    settings = dict(setting.split("=", 1) for setting in found.split("\0") if setting)
    uv = [sys.executable, "-m", "uv"]
    pip = [*uv, "pip", "install", "--python", str(folder), "--quiet", "--no-deps"]
    # torch alone first, as in scripts/setup.sh: with a torch backend, uv looks for other packages in that index only.
    torch = next(line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    # The default torch of the package index is a CUDA build of several gigabytes.
    folders = filter(None, settings.get("UV_FIND_LINKS", "").split(","))
    on_disk = any(any(Path(folder).glob("torch-*+cpu-*.whl")) for folder in folders)
    backend = [] if on_disk else ["--torch-backend", "cpu"]
    for command in (
        [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        [*pip, *backend, torch],
        [*pip, "-r", str(LOCK)],
    ):
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"infinity-emb can't be installed: {done.stderr.strip()}")
    return folder / "bin" / "infinity_emb"

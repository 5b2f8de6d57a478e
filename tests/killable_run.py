"""Starts trainer runs that a test can kill, forked from a process that imported everything once."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from model_export.progress import quiet_vendors

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.killable_run", "model_export.run"])
_LONGEST_S = 240


class StoppedError(Exception):
    """Raised in a test to end a run in this process as a kill would."""


def command(log: Path, *arguments: str, within_s: float = _LONGEST_S) -> int:
    """Run `notegrade-train` to its end and return the exit code. Its output is appended to the log."""
    return _join(_CONTEXT.Process(target=_command, args=(log, arguments)), within_s)


def run_killed_at(
    log: Path, recipe: Path, out: Path, stage: str, step: int, *, within_s: float = _LONGEST_S
) -> int:
    """Run the recipe until it reports this step of this stage, kill it with SIGKILL, and return the exit code."""
    return _join(_CONTEXT.Process(target=_run_killed_at, args=(log, recipe, out, stage, step)), within_s)


def _join(process: "multiprocessing.context.ForkServerProcess", within_s: float) -> int:
    quiet_vendors()  # the process that others are forked from takes its environment from here
    process.start()
    process.join(within_s)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the run has not ended within {within_s} s")
    return process.exitcode


def _prepare(log: Path) -> None:
    import torch

    torch.set_num_threads(1)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _command(log: Path, arguments: tuple[str, ...]) -> None:
    from model_export.__main__ import main

    _prepare(log)
    sys.argv = ["notegrade-train", *arguments]
    main()


def _run_killed_at(log: Path, recipe: Path, out: Path, stage: str, step: int) -> None:
    from model_export.recipe_file import load_recipe
    from model_export.run import run

    def on_progress(name: str, done: int, _total: int) -> None:
        if (name, done) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)

    _prepare(log)
    run(load_recipe(recipe), recipe.read_text(encoding="utf-8"), Path(), out, on_progress)

"""Progress bars on the terminal while the trainer works."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Reports progress: (stage, steps done, total steps).
OnProgress = Callable[[str, int, int], None]


def quiet_vendors() -> None:
    """Silence progress bars and hints of transformers, sentence-transformers and vLLM. Call it before transformers is imported."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_VERBOSITY"] = "error"
    # TRL imports vLLM, which warns before it reads a level from the environment.
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    logging.getLogger("vllm").setLevel(logging.ERROR)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)


@contextlib.contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Show a bar for the current stage, and one line for each finished stage, on stderr."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    stage, started = "", time.monotonic()

    def finish() -> None:
        if stage:
            console.print(f"[green]✓[/green] {stage} ({time.monotonic() - started:.1f} s)", highlight=False)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def on_progress(name: str, done: int, total: int) -> None:
            nonlocal stage, started
            if name != stage:
                finish()
                stage, started = name, time.monotonic()
                bar.reset(task)
            bar.update(task, description=name, completed=done, total=total if total > 1 else None)

        yield on_progress
    finish()

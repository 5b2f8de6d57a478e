"""The `notegrade-train` command."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from service.errors import NotegradeError

USAGE_ERROR = 2

app = typer.Typer(
    name="notegrade-train",
    help="Make the checkpoints that Notegrade serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Keeps `assemble` a subcommand while it is the only one."""


@app.command()
def assemble(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    base: Annotated[
        str, typer.Option(help="`smollm2`, a transformers folder, a GGUF file, or a hub id (owner/name).")
    ] = "smollm2",
    template: Annotated[str, typer.Option(help="Order of the prompt.")] = "note-first-1",
    criteria: Annotated[str, typer.Option(help="Name of packaged criteria, or a TOML file.")] = "general-1",
    name: Annotated[str | None, typer.Option(help="Name in the manifest; the base's by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that lies there.")] = False,
) -> None:
    """Make a checkpoint of a base model and a criteria prompt, without training."""
    # Not at the top: torch and transformers take seconds, and `--help` needs neither.
    from model_export.assemble import Plan
    from model_export.assemble import assemble as make
    from model_export.criteria import load_criteria
    from model_export.progress import quiet_vendors, show_progress
    from model_export.template import find_template

    plan = Plan(base, find_template(template), load_criteria(criteria), name)
    quiet_vendors()
    with show_progress() as on_progress:
        make(plan, out, force=force, on_progress=on_progress)
    typer.echo(f"{out} is ready")


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    # As an exception, so that the half-written folder goes.
    sys.exit(128 + signum)


def main() -> None:
    """Run the command; what a user can put right is one line on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except (NotegradeError, OSError) as error:
        typer.echo(f"notegrade-train: {error}", err=True)
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()

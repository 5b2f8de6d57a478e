"""The `notegrade` command."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import REGISTRY, CollectorRegistry
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn

from service.app import (
    ScoringStack,
    build_app,
    build_stack,
    listening_addresses,
    load_keyring,
    require_engine,
)
from service.cli.encode import NoteSender
from service.cli.hub import locate_checkpoint
from service.cli.mode import describe, describe_flip, flip_mode, parse_ttl, read_history, read_mode
from service.cli.offline import read_notes, score_notes, to_json_line, to_table
from service.cli.remote import Remote
from service.cli.shadow import describe_shadow
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.contract.manifest import describe_limits
from service.errors import BadField, NotegradeError
from service.http.auth import Keyring, hash_key, new_key
from service.http.schemas import RequestLimits
from service.http.server import Server, allow_open_files, bind
from service.observability.logs import configure_logs, unbuffer_stderr
from service.scoring.types import PairResult, ScoringNote
from service.settings import Settings, load_settings

app = typer.Typer(
    help="Grades how well notes answer a query.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Results go to stdout, messages to stderr.
messages = Console(stderr=True, highlight=False, soft_wrap=True)

CheckpointOption = Annotated[
    str | None, typer.Option(help="Folder or hub id; else NOTEGRADE_CHECKPOINT, else checkpoints/default")
]
UrlOption = Annotated[str, typer.Option(envvar="NOTEGRADE_URL", help="The service's URL")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Else NOTEGRADE_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="Else NOTEGRADE_PORT, else 8000")] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Serve a checkpoint over HTTP."""
    settings = load_settings(host=host, port=port, checkpoint=checkpoint)
    configure_logs(settings.log_level, settings.log_format)
    require_engine(settings)
    allow_open_files(settings.max_connections)
    with contextlib.ExitStack() as sockets:
        listeners = [sockets.enter_context(bind(*address)) for address in listening_addresses(settings)]
        stack = build_stack(settings, _load(settings), REGISTRY)
        ports = [listener.getsockname()[1] for listener in listeners]
        web = build_app(settings, stack, admin_port=ports[1] if ports[1:] else None)
        server = Server(web, stack, settings)
        _print_addresses(settings, stack, listeners)
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, _exit)  # until the server installs its own handlers
        server.run(listeners)
    if server.failed:
        _print("[bold red]The engine was lost:[/] the log says why")
        raise typer.Exit(1)


@app.command()
def score(
    query: Annotated[str, typer.Option(help="What the notes should answer")],
    notes: Annotated[Path, typer.Option(help="JSON lines of {id, title, body}", exists=True, dir_okay=False)],
    json_lines: Annotated[
        bool, typer.Option("--json", help="JSON lines instead of a table, in the file's order")
    ] = False,
    criteria: Annotated[str | None, typer.Option(help="One of the checkpoint's criteria, by name")] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Score a file of notes offline. Exits with 1 if a line could not be read or a note could not be scored."""
    settings = load_settings(checkpoint=checkpoint)
    configure_logs("warning", "text")
    require_engine(settings)
    with notes.open(encoding="utf-8", errors="replace") as file:
        found, unreadable = read_notes(file, settings)
    stack = build_stack(settings, _load(settings), CollectorRegistry())
    results = asyncio.run(_score_offline(stack, query, found, criteria))
    if json_lines:
        for result in results:
            typer.echo(to_json_line(result))
    else:
        Console().print(to_table(query, found, results))
    _print_unreadable(notes, unreadable)
    failed = sum(result.judgement is None for result in results)
    if failed:
        messages.print(f"[red]{failed} of {len(results)} notes could not be scored[/]")
    if unreadable or failed:
        raise typer.Exit(1)


@app.command()
def encode(
    notes: Annotated[
        Path, typer.Argument(help="JSON lines of {id, title, body}", exists=True, dir_okay=False)
    ],
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Have a running service make the vectors of a file of notes, ahead of the queries; NOTEGRADE_KEY holds a key.

    Exits with 1 if a line could not be read or a note could not be encoded.
    """
    with notes.open(encoding="utf-8", errors="replace") as file:
        found, unreadable = read_notes(file, RequestLimits())
    columns = (SpinnerColumn(), *Progress.get_default_columns())
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task("encoding", total=len(found))
        encoded = NoteSender(Remote(url), lambda n: progress.advance(task, n)).encode(found)
    typer.echo(
        f"{encoded.sent} notes sent; the service encoded {encoded.stored} and failed on {encoded.failed}"
    )
    _print_unreadable(notes, unreadable)
    if unreadable or encoded.failed:
        raise typer.Exit(1)


@app.command()
def check(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or hub id; else NOTEGRADE_CHECKPOINT")
    ] = None,
) -> None:
    """Check settings and a checkpoint folder (files, fingerprint, labels, format of probes) without loading weights."""
    settings = load_settings(checkpoint=checkpoint)
    listening_addresses(settings)
    manifest = _load(settings).manifest
    messages.print(f"[green]{manifest.name} can be served[/]: {manifest.fingerprint}")
    messages.print(f"grading version {manifest.grading_version}")
    messages.print(
        f"criteria {', '.join(c.name for c in manifest.criteria)}; template {manifest.template.name}"
    )
    messages.print(f"at most {describe_limits(manifest)}")
    if second := manifest.vectors:
        messages.print(
            f"a note is also read as {second.per_note} vectors, of at most {second.max_note_tokens} tokens"
        )


@app.command()
def key(
    role: Annotated[str, typer.Option(help="`score` or `admin`")] = "score",
    name: Annotated[str | None, typer.Option(help="Shown in logs and in the history of flips")] = None,
) -> None:
    """Make a key and print it once, with its entry for NOTEGRADE_KEYS."""
    secret = new_key()
    entry = ":".join(filter(None, (role, hash_key(secret), name)))
    Keyring.parse(entry)  # refuses a role or a name that no entry can hold
    typer.echo(f"key:   {secret}")
    typer.echo(f"entry: {entry}")


@app.command()
def mode(
    to: Annotated[
        str | None, typer.Argument(help="off, on_request, sample or all; without it, the mode is shown")
    ] = None,
    ttl: Annotated[str | None, typer.Option(help="How long the mode applies: 90s, 30m, 2h")] = None,
    reason: Annotated[str, typer.Option(help="Why, for the history")] = "",
    rate: Annotated[float | None, typer.Option(help="Share of pairs to explain, for sample")] = None,
    history: Annotated[int, typer.Option(help="Also show this many of the last flips")] = 0,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Show or flip explanation mode of a running service; NOTEGRADE_KEY holds an admin key."""
    remote = Remote(url)
    now = read_mode(remote)
    if to is not None:
        change = {"mode": to, "reason": reason, "ttl_s": parse_ttl(ttl) if ttl else None, "rate": rate}
        now = flip_mode(remote, change, now["etag"])
    typer.echo(describe(now))
    for flip in read_history(remote, history) if history else ():
        typer.echo(describe_flip(flip))


@app.command()
def shadow(
    url: UrlOption = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text")] = False,
) -> None:
    """Compare the shadow's checkpoint with the one that a running service serves; NOTEGRADE_KEY holds an admin key."""
    report = Remote(url).send("GET", "/admin/shadow").json()
    typer.echo(json.dumps(report, indent=1) if as_json else describe_shadow(report))


@app.command()
def experiment(
    control: Annotated[
        str,
        typer.Option(help="Start of the control's fingerprint, then `/` and its grading version if needed"),
    ],
    treatment: Annotated[
        str,
        typer.Option(help="Start of the treatment's fingerprint, then `/` and its grading version if needed"),
    ],
    prometheus: Annotated[str, typer.Option(help="Prometheus's URL")] = "http://127.0.0.1:9090",
    since: Annotated[
        str,
        typer.Option(help="Start of the experiment (2026-01-31T12:00, UTC), or how long ago (90m, 24h, 7d)"),
    ] = "24h",
    until: Annotated[
        str | None, typer.Option(help="End of the experiment, in the same form; else now")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="Length of one independent observation: 30m, 1h; else a 24th of the period"),
    ] = None,
    where: Annotated[
        str, typer.Option(help="Label matchers that select the series: 'namespace=\"notegrade\"'")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Compare two checkpoints that serve side by side. Exits with 1 if the treatment is worse by any measure, with 2 if none is judged."""
    # Imported here: scipy is an extra, and `serve` must not load it.
    from service.experiments.command import judge_experiment, parse_period
    from service.experiments.prometheus import Prometheus

    report = judge_experiment(
        Prometheus(prometheus, where), control, treatment, parse_period(since, until, window, time.time())
    )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
    else:
        Console(highlight=False).print(report.to_table())
    raise typer.Exit(report.exit_code)


def main() -> None:
    """Run the command; an error of the error tree is printed in one line, with exit code 2."""
    unbuffer_stderr()
    try:
        app()
    except NotegradeError as error:
        messages.print(f"[bold red]{error.title}:[/] {escape(str(error))}")
        sys.exit(2)


def _print_unreadable(notes: Path, unreadable: Sequence[BadField]) -> None:
    for bad in unreadable:
        messages.print(f"[red]{escape(str(notes))}, {bad.field}[/] skipped: {escape(bad.message)}")


def _exit(*_signal: object) -> None:
    # The first process of a container ignores signals that it has no handler for.
    sys.exit(0)


def _print(message: str) -> None:
    # The service must start even if stderr is on a full disk.
    with contextlib.suppress(OSError):
        messages.print(message)


def _print_addresses(settings: Settings, stack: ScoringStack, listeners: list[socket.socket]) -> None:
    urls = [_url(*listener.getsockname()[:2]) for listener in listeners]
    if load_keyring(settings).is_empty:
        _print(f"[yellow]No keys are set: {urls[0]} accepts calls without a key, from this machine only.[/]")
    _print(f"Serving {stack.checkpoint.manifest.name} on {urls[0]} (docs at /docs)")
    for url in urls[1:]:
        _print(f"For operators (/admin, /metrics, /console): {url}")
    _print("The engine is loading: /readyz answers 200 once the checkpoint's probes are reproduced.")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _load(settings: Settings) -> Checkpoint:
    return load_checkpoint(locate_checkpoint(settings.checkpoint))


async def _score_offline(
    stack: ScoringStack, query: str, notes: Sequence[ScoringNote], criteria: str | None
) -> list[PairResult]:
    columns = (SpinnerColumn(), *Progress.get_default_columns())
    with Progress(*columns, console=messages, transient=True) as progress:
        loading = progress.add_task("loading the engine", total=None)
        async with stack.running() as bringing_up:
            await bringing_up
            stack.readiness.require()
            progress.remove_task(loading)
            scoring = progress.add_task("scoring", total=len(notes))
            return await score_notes(
                stack.scorer, query, notes, criteria, lambda n: progress.advance(scoring, n)
            )


if __name__ == "__main__":
    main()

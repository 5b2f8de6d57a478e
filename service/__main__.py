"""The `notegrade` command."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import REGISTRY, CollectorRegistry
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from service.app import (
    build_app,
    build_stack,
    listening_addresses,
    load_keyring,
    prepare_engine,
    request_limits,
)
from service.cli.hub import locate_checkpoint
from service.cli.mode import describe, describe_flip, flip_mode, parse_ttl, read_history, read_mode
from service.cli.offline import read_notes, score_notes, to_json_line, to_table
from service.cli.remote import Remote
from service.cli.shadow import describe_shadow, read_shadow
from service.contract.checkpoint import Checkpoint, load_checkpoint
from service.errors import NotegradeError
from service.http.auth import Keyring, hash_key, new_key
from service.http.connections import ConnectionLimits
from service.http.server import Server, StopTimes, allow_open_files, bind
from service.observability.logs import configure_logs
from service.scoring.types import PairResult, ScoringNote
from service.settings import Settings, load_settings
from service.stack import ScoringStack

app = typer.Typer(
    help="Grades how well notes answer a query.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# stdout belongs to results; everything said to a person goes beside it.
to_person = Console(stderr=True, highlight=False, soft_wrap=True)

CheckpointOption = Annotated[
    str | None, typer.Option(help="Folder or hub id; else NOTEGRADE_CHECKPOINT, else checkpoints/default")
]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Else NOTEGRADE_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="Else NOTEGRADE_PORT, else 8000")] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Serve a checkpoint over HTTP."""
    settings = load_settings(host=host, port=port, checkpoint=checkpoint)
    configure_logs(settings.log_level, settings.log_format)
    allow_open_files(settings.max_connections)
    with contextlib.ExitStack() as sockets:
        listeners = [sockets.enter_context(bind(*address)) for address in listening_addresses(settings)]
        stack = build_stack(settings, _load(settings), REGISTRY)
        ports = [listener.getsockname()[1] for listener in listeners]
        web = build_app(settings, stack, private_port=ports[1] if ports[1:] else None)
        server = Server(web, stack, _connection_limits(settings), _stop_times(settings))
        _tell_what_is_served(settings, stack, listeners)
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, _leave)  # until the server takes them
        prepare_engine(settings, listeners)
        server.run(listeners)
    if server.failed:
        _tell("[bold red]The engine was lost:[/] the log says why")
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
    """Score a file of notes offline. Exits with 1 when a line could not be read or a note not be scored."""
    settings = load_settings(checkpoint=checkpoint)
    configure_logs("warning", "text")
    with notes.open(encoding="utf-8", errors="replace") as file:
        found = read_notes(file, request_limits(settings))
    stack = build_stack(settings, _load(settings), CollectorRegistry())
    prepare_engine(settings)
    results = asyncio.run(_score_offline(stack, query, found.notes, criteria))
    if json_lines:
        for result in results:
            typer.echo(to_json_line(result))
    else:
        Console().print(to_table(query, found.notes, results))
    for bad in found.unreadable:
        to_person.print(f"[red]{escape(str(notes))}, {bad.field}[/] skipped: {escape(bad.message)}")
    failed = sum(result.judgement is None for result in results)
    if failed:
        to_person.print(f"[red]{failed} of {len(results)} notes could not be scored[/]")
    if found.unreadable or failed:
        raise typer.Exit(1)


@app.command()
def check(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or hub id; else NOTEGRADE_CHECKPOINT")
    ] = None,
) -> None:
    """Check settings and a checkpoint folder (files, fingerprint, labels, probes' form) without loading weights."""
    settings = load_settings(checkpoint=checkpoint)
    listening_addresses(settings)
    manifest = _load(settings).manifest
    to_person.print(f"[green]{manifest.name} can be served[/]: {manifest.fingerprint}")
    to_person.print(
        f"criteria {', '.join(c.name for c in manifest.criteria)}; template {manifest.template.name}"
    )


@app.command()
def key(
    role: Annotated[str, typer.Option(help="`score` or `admin`")] = "score",
    name: Annotated[str | None, typer.Option(help="Shown in logs and in the history of flips")] = None,
) -> None:
    """Make a key: printed once, with the entry for NOTEGRADE_KEYS that lets it in."""
    secret = new_key()
    entry = ":".join(filter(None, (role, hash_key(secret), name)))
    Keyring.parse(entry)  # refuses a role or a name that would be refused there
    typer.echo(f"key:   {secret}")
    typer.echo(f"entry: {entry}")


@app.command()
def mode(
    to: Annotated[
        str | None, typer.Argument(help="off, on_request, sample or all; left out, the mode is shown")
    ] = None,
    ttl: Annotated[str | None, typer.Option(help="How long it holds: 90s, 30m, 2h")] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever is on call next")] = "",
    rate: Annotated[float | None, typer.Option(help="Share of pairs to explain, for sample")] = None,
    history: Annotated[int, typer.Option(help="Show that many of the last flips as well")] = 0,
    url: Annotated[str | None, typer.Option(help="Else NOTEGRADE_URL, else http://127.0.0.1:8000")] = None,
) -> None:
    """Show or flip explanation mode of a running service; NOTEGRADE_KEY holds an admin key."""
    remote = Remote.from_environment(url)
    now = read_mode(remote)
    if to is not None:
        change = {"mode": to, "reason": reason, "ttl_s": parse_ttl(ttl) if ttl else None, "rate": rate}
        asked = {name: value for name, value in change.items() if value is not None}
        now = flip_mode(remote, asked, now["etag"])
    typer.echo(describe(now))
    for flip in read_history(remote, history) if history else ():
        typer.echo(describe_flip(flip))


@app.command()
def shadow(
    url: Annotated[str | None, typer.Option(help="Else NOTEGRADE_URL, else http://127.0.0.1:8000")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text")] = False,
) -> None:
    """Show how another checkpoint differs from the one that a running service serves; NOTEGRADE_KEY holds an admin key."""
    found = read_shadow(Remote.from_environment(url))
    typer.echo(json.dumps(found, indent=1) if as_json else describe_shadow(found))


@app.command()
def experiment(
    control: Annotated[str, typer.Option(help="Its fingerprint, or the start of it")],
    treatment: Annotated[str, typer.Option(help="Its fingerprint, or the start of it")],
    prometheus: Annotated[str, typer.Option(help="Where it listens")] = "http://127.0.0.1:9090",
    since: Annotated[
        str, typer.Option(help="When it began (2026-01-31T12:00, UTC), or how long ago (90m, 24h, 7d)")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="When it ended, likewise; else now")] = None,
    window: Annotated[
        str | None, typer.Option(help="What counts as independent: 30m, 1h; else a 24th of the time")
    ] = None,
    where: Annotated[str, typer.Option(help="Of all series, only these: 'namespace=\"notegrade\"'")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table")] = False,
) -> None:
    """Judge two checkpoints that serve side by side. Exits with 1 when the treatment is worse by any measure."""
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
    if report.is_worse:
        raise typer.Exit(1)


def main() -> None:
    """Run the command; what we foresaw going wrong is one line and exit code 2."""
    try:
        app()
    except NotegradeError as error:
        to_person.print(f"[bold red]{error.title}:[/] {escape(str(error))}")
        sys.exit(2)


def _leave(*_signal: object) -> None:
    # The first process of a container dies of no signal that it has no handler for.
    sys.exit(0)


def _tell(message: str) -> None:
    # A full disk behind stderr is no reason not to serve.
    with contextlib.suppress(OSError):
        to_person.print(message)


def _tell_what_is_served(settings: Settings, stack: ScoringStack, listeners: list[socket.socket]) -> None:
    urls = [_url(*listener.getsockname()[:2]) for listener in listeners]
    if load_keyring(settings).is_empty:
        _tell(f"[yellow]No keys are set: serving on {urls[0]} alone, to anybody there.[/]")
    _tell(f"Serving {stack.checkpoint.manifest.name} on {urls[0]} (docs at /docs)")
    for url in urls[1:]:
        _tell(f"For operators (/admin, /metrics, /console): {url}")
    _tell(
        "The engine is loading: connections may be refused for some seconds, and /readyz turns 200 when the checkpoint's probes are reproduced."
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        connections=settings.max_connections,
        head_bytes=settings.max_head_bytes,
        head_timeout_s=settings.request_head_timeout_s,
        write_timeout_s=settings.response_timeout_s,
    )


def _stop_times(settings: Settings) -> StopTimes:
    return StopTimes(settings.drain_delay_s, settings.drain_timeout_s, settings.engine_lost_exit_s)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _load(settings: Settings) -> Checkpoint:
    return load_checkpoint(locate_checkpoint(settings.checkpoint))


async def _score_offline(
    stack: ScoringStack, query: str, notes: tuple[ScoringNote, ...], criteria: str | None
) -> list[PairResult]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=to_person, transient=True) as progress:
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

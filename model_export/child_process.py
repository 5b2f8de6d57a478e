"""Child processes that can't outlive the trainer."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

# The watcher, in the child's process group, reads a pipe from this process. When this process ends, however it ends, the
# pipe closes, the read returns and the group gets the signal. It must not hold the child's output open after the child.
_WATCH = 'exec 3<&0; { read -r _ <&3; kill -"$0" 0; } >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'


def start_child(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pipe_stdout: bool = False,
    signal_at_end: Literal["TERM", "KILL"] = "KILL",
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, which gets `signal_at_end` when this process ends, even by SIGKILL.

    A parent-death signal (prctl) would reach the command alone and leave its own children behind. Take TERM for a
    command that ends its children itself, in groups of their own. Standard error, and standard output unless it is
    piped, go to the log. The caller closes `stdin`, which tells the watcher to signal what is left of the group.
    """
    with log.open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - a fixed script and the caller's command
            ["/bin/sh", "-c", _WATCH, signal_at_end, *command],
            env=None if environment is None else dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if pipe_stdout else file,
            stderr=file,
            start_new_session=True,
        )

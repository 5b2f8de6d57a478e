import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import psutil
import pytest

from load_tests.processes import Server, Unavailable, free_port, run_server
from tests.waiting import wait_until

# Answers 503 twice and then 200, like a server that is still loading.
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked > 2 and self.path == "/ready" else 503)
        self.end_headers()
        self.wfile.write(str(Handler.asked).encode())
print("loading", flush=True)
{before}
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def make_server(before: str = "", timeout_s: float = 60) -> Server:
    port = free_port()
    code = SERVER.format(before=textwrap.dedent(before))
    command = [sys.executable, "-c", code, str(port)]
    return Server(command, {**os.environ, "PYTHONUNBUFFERED": "1"}, port, "/ready", timeout_s)


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_server_is_yielded_once_it_is_ready_and_ends_with_the_block() -> None:
    server = make_server()
    with run_server(server) as running:
        assert running.url == f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{running.url}/ready").text == "4"
        assert running.ready_s > 0
        assert psutil.Process(running.pid).cmdline()[0] == sys.executable
    # Ours to reap, and reaped.
    assert not psutil.pid_exists(running.pid)


def test_server_that_ends_early_raises_with_the_end_of_its_log() -> None:
    started = time.monotonic()
    with (
        pytest.raises(Unavailable) as caught,
        run_server(make_server("print('no such model'); sys.exit(3)", timeout_s=600)),
    ):
        pytest.fail("it was taken for ready")
    expected = ["ended with exit code 3 before it was ready: no such model", "loading", "no such model"]
    assert str(caught.value).splitlines() == expected
    assert time.monotonic() - started < 60


def test_server_that_is_never_ready_times_out() -> None:
    with (
        pytest.raises(Unavailable, match="not ready after 1 s: "),
        run_server(make_server("import time; time.sleep(600)", timeout_s=1)),
    ):
        pytest.fail("it was taken for ready")


def test_child_in_its_own_session_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    pid_file = tmp_path / "pid"
    before = f"""
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
    open({str(pid_file)!r}, "w").write(str(child.pid))
    """
    with run_server(make_server(before)):
        left = psutil.Process(int(pid_file.read_text()))
        assert not has_ended(left)
    assert has_ended(left)


def test_suspended_server_ends_at_once() -> None:
    with run_server(make_server()) as running:
        os.kill(running.pid, signal.SIGSTOP)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 10


def test_exception_in_the_block_has_the_end_of_the_log() -> None:
    with pytest.raises(ZeroDivisionError) as caught, run_server(make_server()):
        raise ZeroDivisionError
    [note] = caught.value.__notes__
    assert note.startswith("the server's log: ")
    assert "\nloading\n" in note


def test_server_ends_when_the_load_generator_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, sys
from load_tests.processes import Server, run_server
with run_server(Server({list(make_server().command)!r}, os.environ, {free_port()}, "/ready")):
    pass
"""
    # It polls another port than the server's, so that it waits for ever.
    # Killed, it can't remove its folder.
    generator = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    this = psutil.Process(generator.pid)
    wait_until(lambda: bool(this.children()))
    [server] = this.children()
    generator.send_signal(signal.SIGKILL)
    generator.wait()
    wait_until(lambda: has_ended(server))

"""Runs a server that can be slow at each step of an answer, and that counts connections."""

import json
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

PIECE_S = 0.05


class SlowServer(socketserver.ThreadingTCPServer):
    """Gives the responses in order and repeats the last one; `ends` is set when the test is over."""

    def __init__(self, *responses: "Respond") -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.responses = list(responses)
        self.accepted = 0
        self.asked: list[dict[str, Any]] = []
        self.ends = threading.Event()
        self.open_now: list[socket.socket] = []
        self.url = f"http://localhost:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: SlowServer

    def handle(self) -> None:
        self.server.accepted += 1
        self.server.open_now.append(self.connection)
        with suppress(OSError):
            while (length := self._read_head()) is not None and not self.server.ends.is_set():
                self.server.asked.append(json.loads(self.rfile.read(length)))
                left = self.server.responses
                respond = left.pop(0) if len(left) > 1 else left[0]
                if not respond(self.server, self.connection):
                    break

    def _read_head(self) -> int | None:
        """Return the body's length, or None if the client has left."""
        length = None
        while (line := self.rfile.readline().strip().lower()) and line:
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return length


Respond = Callable[[SlowServer, socket.socket], bool]  # whether the connection stays open


def at_once(answer: tuple[int, dict[str, str], Any], after_s: float = 0) -> Respond:
    """Respond with the whole answer, this long after the request."""
    status, headers, body = answer
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode()

    def respond(server: SlowServer, connection: socket.socket) -> bool:
        server.ends.wait(after_s)
        connection.sendall(head + content)
        return True

    return respond


def in_pieces(start: bytes) -> Respond:
    """Respond with these bytes, and then with one byte at a time until the test ends."""

    def respond(server: SlowServer, connection: socket.socket) -> bool:
        connection.sendall(start)
        while not server.ends.wait(PIECE_S):
            connection.sendall(b" ")
        return False

    return respond


def cut_off(start: bytes) -> Respond:
    """Respond with these bytes, and then close the connection."""

    def respond(_: SlowServer, connection: socket.socket) -> bool:
        connection.sendall(start)
        return False

    return respond


def silence(server: SlowServer, _: socket.socket) -> bool:
    """Do not respond until the test ends."""
    server.ends.wait()
    return False


@asynccontextmanager
async def serving(*responses: Respond) -> AsyncIterator[SlowServer]:
    """Run a server with these responses; it leaves no thread and no connection."""
    with SlowServer(*responses) as server:
        accepting = threading.Thread(target=server.serve_forever, args=[0.01])
        accepting.start()
        try:
            yield server
        finally:
            server.ends.set()
            server.shutdown()
            accepting.join()
            for connection in server.open_now:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def accepting_nobody() -> Iterator[str]:
    """Yield the URL of a socket whose queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(8)]
        try:
            for connection in waiting:
                connection.setblocking(False)
                connection.connect_ex(listener.getsockname())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for connection in waiting:
                connection.close()

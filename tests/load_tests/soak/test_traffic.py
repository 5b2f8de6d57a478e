"""The soak complains about connections that the service keeps open or refuses."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from load_tests.soak import traffic
from load_tests.soak.traffic import Callers

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def complaints_about(handle: Handle) -> list[str]:
    """Send one malformed request to a server, and return the complaints."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as session:
        callers = Callers(f"http://127.0.0.1:{port}", session, seed=1)
        await callers._raw()
        server.close()
        await server.wait_closed()
        await callers._raw()
    return callers.tally.wrong


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_connection_that_stays_open_is_an_error(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "CLOSED_WITHIN_S", 0.2)
    kept: list[asyncio.StreamWriter] = []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if keeps:
            kept.append(writer)
        else:
            writer.close()

    found = await complaints_about(handle)
    for writer in kept:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert ["the connection was kept for 0.2 s" in each for each in found] == [True] * keeps + [False]
    assert "no connection" in found[-1]

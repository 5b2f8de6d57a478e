"""Errors of Redis name their type and no part of the URL. test_redis_cache.py tests the rest of the connection."""

import socket
import traceback

import pytest
from redis.asyncio import BlockingConnectionPool

from service.caches.redis_connection import RedisConnection, translate_redis_errors
from service.errors import ExplanationStoreError

USER, PASSWORD = "ann-of-redis", "s3cr3t"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_the_error_of_a_refused_connection_names_only_its_type(refused_port: int, host: str) -> None:
    url = f"redis://{USER}:{PASSWORD}@{host}:{refused_port}/0"
    connection = RedisConnection(url, 5, 2, ExplanationStoreError)
    with pytest.raises(ExplanationStoreError) as caught:
        async with connection.call() as redis:
            await redis.ping()
    await connection.close()
    assert str(caught.value).startswith("Redis did not answer: ConnectionError (")
    printed = "".join(traceback.format_exception(caught.value))
    for part in (host, "127.0.0.1", str(refused_port), USER, PASSWORD):
        assert part not in printed


async def test_a_connection_that_does_not_close_cleanly_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def time_out(_: BlockingConnectionPool) -> None:
        raise TimeoutError(
            "Timed out closing connection after 1"
        )  # as redis-py does with TLS where Redis hangs

    monkeypatch.setattr(BlockingConnectionPool, "aclose", time_out)
    await RedisConnection("redis://localhost", 5, 2, ExplanationStoreError).close()
    assert "did not close cleanly: Redis did not answer: TimeoutError" in caplog.text


async def test_the_error_names_the_type_of_its_cause() -> None:
    error = ConnectionError("Error -2 connecting to redis.example:6379. Name or service not known.")
    error.__context__ = socket.gaierror(-2, "Name or service not known")
    with pytest.raises(ExplanationStoreError) as caught:
        async with translate_redis_errors(ExplanationStoreError):
            raise error
    assert str(caught.value) == "Redis did not answer: ConnectionError (gaierror)"

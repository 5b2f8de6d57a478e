"""The places in which every store of the service is tested: in memory, on a real Redis and on a real Redis Cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis

from tests.clock import Clock


@dataclass(frozen=True, slots=True)
class Place:
    """A Redis or a Redis Cluster with the addresses of its `nodes`; or none, for the twin in memory, which reads the `clock`."""

    url: str | None = None
    nodes: Sequence[str] = ()
    clock: Clock = field(default_factory=Clock)

    @property
    def is_cluster(self) -> bool:
        return len(self.nodes) > 1

    async def age(self, seconds: float) -> None:
        """Make everything that is stored older. Fails for a key that never expires."""
        self.clock.now += seconds
        for node in self.nodes:
            async with Redis.from_url(node) as client:
                for key in await client.keys("*"):
                    left_ms = await client.pttl(key)
                    assert left_ms > 0, f"{key!r} never expires"
                    await client.pexpire(key, left_ms - round(seconds * 1000))

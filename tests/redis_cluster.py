"""Starts a real Redis Cluster of three servers for the tests of a session."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from load_tests.processes import free_ports
from tests.redis_server import RedisServer
from tests.waiting import wait_until

SLOTS = 16_384
NODE_TIMEOUT_MS = 500  # after this, the others take a silent node for failed


class RedisClusterServers:
    """Holds three primaries without replicas. Each has a third of the slots; without one of them the cluster is down."""

    def __init__(self, binary: str, folder: Path) -> None:
        ports = free_ports(6)
        self.nodes = [
            RedisServer(binary, port=port, options=_cluster_options(folder / f"nodes-{port}.conf", bus))
            for port, bus in zip(ports[:3], ports[3:], strict=True)
        ]
        self.admins = [
            Redis(port=node.port, socket_timeout=2, retry=Retry(NoBackoff(), 0)) for node in self.nodes
        ]

    @property
    def url(self) -> str:
        """The address of one node, from which clients find the others."""
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    def form(self) -> None:
        """Give each node its slots, make the nodes known to each other, and return once all serve."""
        for number, admin in enumerate(self.admins):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            ask(admin, "CLUSTER", "ADDSLOTSRANGE", first, last)
            ask(admin, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            bus = self.nodes[number].options["cluster-port"]
            ask(self.admins[0], "CLUSTER", "MEET", "127.0.0.1", self.nodes[number].port, bus)
        self.wait_until_serving()

    def wait_until_serving(self) -> None:
        wait_until(lambda: all(self._serves(admin) for admin in self.admins))

    def _serves(self, admin: Redis) -> bool:
        try:
            known = ask(admin, "CLUSTER INFO")
        except RedisError:
            return False
        return bool(known["cluster_state"] == "ok" and known["cluster_size"] == "3")

    def owner(self, key: str) -> int:
        """Return the number of the node that has the key's slot."""
        slot = ask(self.admins[0], "CLUSTER KEYSLOT", key)
        ids = [ask(admin, "CLUSTER MYID") for admin in self.admins]
        for first, last, primary, *_ in ask(self.admins[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return ids.index(primary[2])
        raise ValueError(f"nobody has the slot of {key}")

    @contextmanager
    def moving(self, key: str) -> Iterator[None]:
        """Move the slot of the key, which exists, to the next node. In the block the key is there, and the slot is not yet."""
        number = self.owner(key)
        (old, old_id), (new, new_id) = (
            (admin, ask(admin, "CLUSTER MYID"))
            for admin in (self.admins[number], self.admins[(number + 1) % 3])
        )
        slot = ask(old, "CLUSTER KEYSLOT", key)
        ask(new, "CLUSTER SETSLOT", slot, "IMPORTING", old_id)
        ask(old, "CLUSTER SETSLOT", slot, "MIGRATING", new_id)
        port = new.connection_pool.connection_kwargs["port"]
        ask(old, "MIGRATE", "127.0.0.1", port, key, 0, 5000)
        yield
        for admin in (new, old):
            ask(admin, "CLUSTER SETSLOT", slot, "NODE", new_id)

    def take_over(self, key: str, by: int) -> None:
        """Give the slot of the key to a node, as after the failure of its owner, which need not run."""
        slot = ask(self.admins[by], "CLUSTER KEYSLOT", key)
        successor = ask(self.admins[by], "CLUSTER MYID")
        ask(self.admins[by], "CLUSTER BUMPEPOCH")
        for admin in self.admins:
            if admin is self.admins[by] or self._serves(admin):
                ask(admin, "CLUSTER SETSLOT", slot, "NODE", successor)

    def wait_until_down(self, number: int) -> None:
        """Return once this node knows that the cluster lacks another one."""
        wait_until(lambda: not self._serves(self.admins[number]))

    def heal(self) -> None:
        """Run every node again, and delete all keys."""
        for node in self.nodes:
            if node.is_running:
                node.resume()
            else:
                node.start()
        self.wait_until_serving()
        for admin in self.admins:
            admin.flushall()


def _cluster_options(file: Path, bus_port: int) -> dict[str, object]:
    return {
        "cluster-enabled": "yes",
        "cluster-config-file": file,
        "cluster-node-timeout": NODE_TIMEOUT_MS,
        "cluster-port": bus_port,
    }


def ask(admin: Redis, *words: object) -> Any:
    return admin.execute_command(*words)  # type: ignore[no-untyped-call]


@contextmanager
def running_cluster(binary: str, folder: Path) -> Iterator[RedisClusterServers]:
    with ExitStack() as stack:
        cluster = RedisClusterServers(binary, folder)
        for node in cluster.nodes:
            stack.enter_context(node)
        for admin in cluster.admins:
            stack.enter_context(admin)
        cluster.form()
        yield cluster

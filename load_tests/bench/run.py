"""The state that all parts of a run share: contestants, traffic, agreement of grades, and records."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from load_tests.bench.peer import Asked, Peer, Tuning
from load_tests.bench.peers import all_peers
from load_tests.bench.peers.notegrade import NotegradeVectors
from load_tests.bench.plan import Plan
from load_tests.bench.records import OURS, VECTORS, Part, Records, agreement
from load_tests.bench.stage import Entrant, stage
from load_tests.bench.turns import Result, Turn, grades_of
from load_tests.bench.workloads import Shape, cold, take
from service.contract.checkpoint import Checkpoint


@dataclass
class Run:
    """A run of some parts, with its results so far.

    Attributes:
        wanted: words in the names of the peers to run; empty for all.
        base: the peers' checkpoint in the part `student`.
        traffic_file: the traffic of the part `replay`.
    """

    plan: Plan
    checkpoint: Checkpoint
    wanted: Sequence[str]
    base: Path | None
    traffic_file: Path | None
    records: Records

    def seed(self, name: str) -> str:
        """Derive a seed per part, so that parts send different requests."""
        return f"{self.plan.seed} {name}"

    def cold(self, name: str, shape: Shape) -> Iterator[Asked]:
        """Make a part's traffic without repetition."""
        return cold(self.seed(name), shape)

    def peers(self, tuning: Tuning, *, cached: bool = False, folder: Path | None = None) -> list[Peer]:
        """List Notegrade, then the wanted peers, in one tuning.

        cached: whether Notegrade may use its pair cache. folder: another checkpoint.
        """
        found = all_peers(folder or self.checkpoint.folder, cached=cached)
        found = [peer for peer in found if peer.tuning == tuning]
        return [peer for peer in found if peer.name == OURS or self._is_wanted(peer)]

    def _is_wanted(self, peer: Peer) -> bool:
        return not self.wanted or any(word.lower() in peer.name.lower() for word in self.wanted)

    def ours(self, *, cached: bool = False) -> Peer:
        """Make Notegrade, tuned."""
        return next(peer for peer in self.peers("tuned", cached=cached) if peer.name == OURS)

    def by_vectors(self, *, cached: bool = False) -> list[Peer]:
        """Make Notegrade that reads note vectors, tuned; none for a checkpoint without an encoder."""
        return (
            [NotegradeVectors(self.checkpoint, "tuned", cached)] if self.checkpoint.manifest.vectors else []
        )

    def rivals(self, folder: Path | None = None) -> list[Peer]:
        """List the best peer of the part `cold` if measured, else all wanted peers. folder: another checkpoint."""
        best = self.records.best_peer("cold")
        peers = [peer for peer in self.peers("tuned", folder=folder) if peer.name != OURS]
        return [peer for peer in peers if best is None or peer.name == best]

    def turn(
        self, part: Part, number: int, asked: Iterable[Asked], requests: int, shape: Shape | None = None
    ) -> Turn:
        """Make a turn of the next requests of the traffic. The shape is the plan's by default."""
        traffic = iter(asked)
        warm_up = take(self.checkpoint.renderer, traffic, self.plan.warm_up_requests)
        taken = take(self.checkpoint.renderer, traffic, requests)
        return Turn(
            part, number, shape or self.plan.shape, taken, warm_up, self.plan.clients, self.plan.timeout_s
        )

    def keep(self, result: Result) -> None:
        """Record a measurement and print it."""
        measurement = result.measurement
        self.records.measurements.append(measurement)
        print(
            f"   round {measurement.round + 1}, {measurement.peer}: {measurement.pairs_per_s:.2f} pairs/s, "
            f"p99 {measurement.latency_ms.get('p99', math.nan):.0f} ms, {measurement.outcomes}",
            file=sys.stderr,
        )

    def skip(self, part: Part, reason: str) -> None:
        """Record why a part has no figures."""
        self.records.skipped[part] = f"{part}: {reason}"
        print(f"   {self.records.skipped[part]}", file=sys.stderr)

    @contextmanager
    def stage(self, contestants: Sequence[Peer]) -> Iterator[list[Entrant]]:
        """Start the contestants, as `load_tests.bench.stage.stage` does, and record their start times."""
        with stage(contestants, self.records.absent) as entrants:
            for entrant in entrants:
                self.records.ready_s.setdefault(entrant.label, entrant.running.ready_s)
            yield entrants

    async def agreeing(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """List the contestants whose grades agree with ours on a sample; others are not compared.

        Note vectors are another reading with other grades, and are compared in speed alone. Empty if Notegrade, which is first, did not start.
        """
        if not entrants or entrants[0].contestant.name != OURS:
            return []
        known = {(each.peer, each.tuning) for each in self.records.agreements}
        readers = [each for each in entrants if each.contestant.name != VECTORS]
        if any((each.contestant.name, each.contestant.tuning) not in known for each in readers[1:]):
            await self._compare_grades(readers)
        return [each for each in entrants if each.label not in self.records.disagreeing]

    async def _compare_grades(self, entrants: Sequence[Entrant]) -> None:
        traffic = self.cold("sample", self.plan.shape)
        sample = take(self.checkpoint.renderer, traffic, self.plan.sample_requests)
        ours = await grades_of(entrants[0], sample, self.plan.timeout_s)
        for entrant in entrants[1:]:
            theirs = await grades_of(entrant, sample, self.plan.timeout_s)
            found = agreement(entrant.contestant.name, entrant.contestant.tuning, ours, theirs)
            self.records.agreements.append(found)
            difference = f"expected grades differ from ours by {found.mean:.4f} on average, {found.maximum:.4f} at most ({found.pairs} pairs)"
            print(f"   {entrant.label}: {difference}", file=sys.stderr)
            if not found.maximum <= self.plan.most_apart:  # NaN, too, is not within the limit
                self.records.disagreeing[entrant.label] = difference

"""What all parts of a run share: who takes part, what is asked, who agrees with whom, and what has been found."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from load_tests.bench.peer import Peer, Tuning
from load_tests.bench.peers import all_peers
from load_tests.bench.plan import Plan
from load_tests.bench.records import OURS, Measurement, Part, Records, agreement
from load_tests.bench.stage import ContestantT, Entrant, stage
from load_tests.bench.turns import AnyEntrant, Turn, grades_of
from load_tests.bench.workloads import Asked, Renderer, Shape, cold
from service.contract.checkpoint import Checkpoint


@dataclass
class Run:
    """A run of some parts, and what it has found so far.

    Attributes:
        wanted: words in the names of the peers that take part beside Notegrade; all where there are none.
        base: the checkpoint that the peers serve in the part `student`.
        traffic_file: what the part `replay` asks.
    """

    plan: Plan
    checkpoint: Checkpoint
    wanted: Sequence[str]
    base: Path | None
    traffic_file: Path | None
    records: Records

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.checkpoint.manifest, self.checkpoint.tokenizer)

    def seed(self, name: str) -> str:
        """One that differs between parts, so that none is asked what another has asked."""
        return f"{self.plan.seed} {name}"

    def cold(self, name: str, shape: Shape) -> Iterator[Asked]:
        """Traffic without repetition, a part's own."""
        return cold(self.seed(name), shape)

    def peers(self, tuning: Tuning, *, cached: bool = False, folder: Path | None = None) -> list[Peer]:
        """Notegrade first, and the wanted peers, in that tuning. cached: Notegrade may use its cache. folder: of another checkpoint."""
        found = all_peers(folder or self.checkpoint.folder, cached=cached)
        found = [peer for peer in found if peer.tuning == tuning]
        return [peer for peer in found if peer.name == OURS or self._is_wanted(peer)]

    def _is_wanted(self, peer: Peer) -> bool:
        return not self.wanted or any(word.lower() in peer.name.lower() for word in self.wanted)

    def ours(self, *, cached: bool = False) -> Peer:
        """Notegrade at its best."""
        return next(peer for peer in self.peers("tuned", cached=cached) if peer.name == OURS)

    def rivals(self, folder: Path | None = None) -> list[Peer]:
        """The best peer of `cold` where that has been measured, else all that are wanted. folder: of another checkpoint."""
        best = self.records.best_peer("cold")
        peers = [peer for peer in self.peers("tuned", folder=folder) if peer.name != OURS]
        return [peer for peer in peers if best is None or peer.name == best]

    def turn(
        self, part: Part, number: int, asked: Iterable[Asked], requests: int, shape: Shape | None = None
    ) -> Turn:
        """The next requests of the traffic. The shape is the plan's unless told otherwise."""
        traffic = iter(asked)
        warm_up = self.renderer.take(traffic, self.plan.warm_up_requests)
        taken = self.renderer.take(traffic, requests)
        return Turn(
            part, number, shape or self.plan.shape, taken, warm_up, self.plan.clients, self.plan.timeout_s
        )

    def keep(self, measurement: Measurement) -> None:
        """Write it down, and say so."""
        self.records.measurements.append(measurement)
        print(
            f"   round {measurement.round + 1}, {measurement.peer}: {measurement.pairs_per_s:.2f} pairs/s, "
            f"p99 {measurement.latency_ms.get('p99', math.nan):.0f} ms, {measurement.outcomes}",
            file=sys.stderr,
        )

    def skip(self, part: Part, reason: str) -> None:
        """Why a part has no figures."""
        self.records.skipped[part] = f"{part}: {reason}"
        print(f"   {self.records.skipped[part]}", file=sys.stderr)

    @contextmanager
    def stage(self, contestants: Sequence[ContestantT]) -> Iterator[list[Entrant[ContestantT]]]:
        """See `load_tests.bench.stage.stage`."""
        with stage(contestants, self.records.absent) as entrants:
            for entrant in entrants:
                self.records.ready_s.setdefault(entrant.label, entrant.running.ready_s)
            yield entrants

    async def agreeing(self, entrants: Sequence[AnyEntrant]) -> list[AnyEntrant]:
        """Those whose grades are ours on a sample: one that computes something else is no comparison, however fast.

        Nobody where Notegrade, the first of them, is not there.
        """
        if not entrants or entrants[0].contestant.name != OURS:
            return []
        known = {(each.peer, each.tuning) for each in self.records.agreements}
        if any((each.contestant.name, each.contestant.tuning) not in known for each in entrants):
            await self._compare_grades(entrants)
        return [each for each in entrants if each.label not in self.records.disagreeing]

    async def _compare_grades(self, entrants: Sequence[AnyEntrant]) -> None:
        sample = self.renderer.take(self.cold("sample", self.plan.shape), self.plan.sample_requests)
        ours = await grades_of(entrants[0], sample, self.plan.timeout_s)
        for entrant in entrants[1:]:
            theirs = await grades_of(entrant, sample, self.plan.timeout_s)
            found = agreement(entrant.contestant.name, entrant.contestant.tuning, ours, theirs)
            self.records.agreements.append(found)
            told = f"expected grades up to {found.greatest:.4f} from ours, {found.mean:.4f} on average ({found.pairs} pairs)"
            print(f"   {entrant.label}: {told}", file=sys.stderr)
            if not found.within(self.plan.most_apart):
                self.records.disagreeing[entrant.label] = told

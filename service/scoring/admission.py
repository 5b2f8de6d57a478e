"""Admission by token cost: a pair that can't meet its deadline is shed at once, not queued.

Callers share the engine by start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): each pair gets a turn in virtual time,
which is its priority in the engine, so that a caller with few notes does not wait for all notes of a caller with many.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.contract.manifest import ReadingKind
from service.observability.metrics import Metrics
from service.scoring.types import Priority

# The time constant of the measured rate, in seconds of saturated time.
RATE_MEMORY_S = 10.0
# A shorter measurement is not used.
MIN_MEASURE_S = 0.5
RETRY_AFTER_RANGE_S = (1.0, 60.0)
# The rate is an average and the wait an estimate: an admitted pair must be expected within this share of its remaining time.
TIME_SHARE = 0.65
# The share of prompt tokens that the engine computes is a moving average: the weight of one answer, and the first values. The
# notes of a query share most of a prompt with vectors: a note computes 5 of about 70 tokens, and its share of the query's.
REUSE_WEIGHT = 0.02
FIRST_SHARES: dict[ReadingKind, float] = {"text": 1.0, "vectors": 0.2}
# Every `batch` turn comes after every `online` turn. Both fit into the engine's 64 bits for any realistic uptime.
FIRST_TURN: dict[Priority, int] = {"online": 0, "batch": 1 << 60}

_MAX_EXPONENT = 100.0  # math.exp fails above 709, two hours after the last late pair

ShedReason = Literal["backlog", "deadline", "no_vectors"]
# Why a pair is not admitted: it is shed, or its deadline is too short even for an engine without other requests.
Refusal = ShedReason | Literal["too_short"]


class FullStep(NamedTuple):
    """The limits of an engine step: it is full with this many tokens, or with this many pairs.

    Pairs that are read from vectors compute few tokens, so they reach the limit of pairs first.
    """

    tokens: int
    pairs: int


class Flow(NamedTuple):
    """A caller at a priority. Flows of one priority share the engine fairly."""

    priority: Priority
    caller: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted pair.

    Attributes:
        tokens: its estimated cost.
        turn: its priority in the engine; lower ones are scheduled first.
        admitted_at_s: the clock's time when it was admitted.
        saturated_s: the engine's saturated time when it was admitted.
        ended_tokens: the estimated tokens of all pairs that had been computed when it was admitted.
        kind: whether its prompt holds text or vectors.
    """

    flow: Flow
    tokens: int
    turn: int
    admitted_at_s: float
    saturated_s: float
    ended_tokens: int
    kind: ReadingKind = "text"


class Admission:
    """Tracks the tokens in the engine by flow, and the rate at which the engine computes them. Used from one event loop."""

    def __init__(
        self, max_backlog_tokens: int, step: FullStep, clock: Callable[[], float], metrics: Metrics
    ) -> None:
        """Create it for an idle engine.

        Args:
            max_backlog_tokens: limit on a pair's tokens plus those that are scheduled before it. With k callers, the
                whole backlog is at most 1 + 1/2 + ... + 1/k times as large.
            step: a backlog that reaches one of its limits saturates the engine.
            clock: returns monotonic seconds.
        """
        self._max_backlog_tokens = max_backlog_tokens
        self._clock = clock
        self._gauge = metrics.backlog_tokens
        self._backlog: Counter[Flow] = Counter()
        self._backlog_tokens = 0
        self._backlog_pairs = 0
        self._step = step
        self._rate = _Rate(clock())
        self._possible_rate = _PossibleRate(clock())
        self._ended_tokens = 0
        self._computed_share = dict(FIRST_SHARES)
        self._virtual_times: Counter[Priority] = Counter()
        self._next_turns: dict[Flow, int] = {}
        metrics.service_rate_tokens.set_function(lambda: self.rate or 0.0)

    @property
    def backlog_tokens(self) -> int:
        """Return the estimated tokens that are admitted and not yet released."""
        return self._backlog_tokens

    @property
    def backlog_share(self) -> float:
        """Return the backlog as a share of its limit: 0 when idle, possibly over 1 with several callers."""
        return self._backlog_tokens / self._max_backlog_tokens

    @property
    def rate(self) -> float | None:
        """Return the tokens per second that the engine computes while it is saturated; None before the first measurement."""
        return self._rate.value

    def tokens_of(self, flow: Flow) -> int:
        """Return the estimated tokens of the flow that are admitted and not yet released."""
        return self._backlog[flow]

    def why_not(
        self,
        flow: Flow,
        prompt_tokens: int,
        remaining_s: float,
        own_tokens: int = 0,
        kind: ReadingKind = "text",
    ) -> Refusal | None:
        """Return why a prompt of that length can't be admitted now, or None if it can.

        `own_tokens` of the backlog belong to the same request: without other requests, the pair would wait for these alone.

        A pair that no other is scheduled before is always admitted: one huge pair must not starve for ever. While the
        engine's next step is not full, no pair is shed for the measured rate: otherwise a rate that was once measured too low
        would keep the engine from ever being saturated, and therefore from being measured again. It may be shed for the rate
        that late pairs leave possible: otherwise steps that take longer than the deadlines would end no pair in time.
        """
        cost = self._estimate_cost(prompt_tokens, kind)
        ahead = self._tokens_ahead(flow, cost)
        if not ahead:
            return None
        if ahead + cost > self._max_backlog_tokens:
            return "backlog"
        rate = self._possible_rate.at(self._clock())
        if self._is_saturated():
            rate = min(rate, self.rate or math.inf)
        if ahead + cost <= (in_time := rate * remaining_s * TIME_SHARE):
            return None
        return "too_short" if own_tokens + cost > in_time else "deadline"

    def admit(self, flow: Flow, prompt_tokens: int, kind: ReadingKind = "text") -> Ticket:
        """Add the pair to the backlog. Call `release` when it has ended."""
        cost = self._estimate_cost(prompt_tokens, kind)
        turn = max(self._virtual_times[flow.priority], self._next_turns.get(flow, 0))
        self._next_turns[flow] = turn + cost
        self._change_backlog(flow, cost, pairs=1)
        turn += FIRST_TURN[flow.priority]
        return Ticket(flow, cost, turn, self._clock(), self._rate.saturated_s, self._ended_tokens, kind)

    def release(self, ticket: Ticket, prompt_tokens: int = 0, computed_tokens: int = 0) -> None:
        """Remove the pair from the backlog: it is done, with these tokens, or it was aborted or failed, without any."""
        if not prompt_tokens:
            at_most = self._backlog_tokens + self._ended_tokens - ticket.ended_tokens
            self._possible_rate.limit(at_most, ticket.admitted_at_s, self._clock())
        self._change_backlog(ticket.flow, -ticket.tokens, pairs=-1)
        if prompt_tokens:
            self._ended_tokens += ticket.tokens
            self._rate.count(computed_tokens * self._saturated_share(ticket))
            share = computed_tokens / prompt_tokens
            self._computed_share[ticket.kind] += REUSE_WEIGHT * (share - self._computed_share[ticket.kind])
            self._advance_virtual_time(ticket)
        else:
            # An aborted pair used no turn. Virtual time must not advance to it, past pairs that are still waiting.
            self._next_turns[ticket.flow] -= ticket.tokens
        if not self._backlog_tokens:  # no pair is left that a turn could put last
            self._virtual_times.clear()
            self._next_turns.clear()

    def retry_after_s(self, priority: Priority) -> float:
        """Return the backlog at this priority and above, divided by the rate, within RETRY_AFTER_RANGE_S; its upper end without a rate."""
        shortest, longest = RETRY_AFTER_RANGE_S
        ahead = sum(
            tokens
            for flow, tokens in self._backlog.items()
            if FIRST_TURN[flow.priority] <= FIRST_TURN[priority]
        )
        if not self.rate:
            return longest if ahead else shortest
        return min(longest, max(shortest, ahead / self.rate))

    def _advance_virtual_time(self, ticket: Ticket) -> None:
        priority = ticket.flow.priority
        turn = ticket.turn - FIRST_TURN[priority]
        self._virtual_times[priority] = max(self._virtual_times[priority], turn)

    def _saturated_share(self, ticket: Ticket) -> float:
        # Measured over the pair's whole time in the engine. The backlog at its end is no measure: the pairs of one step end
        # together, and all but the first of them see a backlog that is nearly empty.
        in_engine_s = self._clock() - ticket.admitted_at_s
        return (self._rate.saturated_s - ticket.saturated_s) / in_engine_s if in_engine_s > 0 else 0.0

    def _estimate_cost(self, prompt_tokens: int, kind: ReadingKind) -> int:
        # Apart: a prompt of text computes most of its tokens, one of vectors a few beside the prefix of its query.
        return math.ceil(prompt_tokens * self._computed_share[kind])

    def _tokens_ahead(self, flow: Flow, cost: int) -> int:
        """Return the tokens scheduled before the flow's next pair: of each flow of its priority, at most as many as its own."""
        own = self._backlog[flow] + cost
        ahead = 0
        for other, tokens in self._backlog.items():
            if other.priority == flow.priority:
                ahead += min(tokens, own)
            elif FIRST_TURN[other.priority] < FIRST_TURN[flow.priority]:
                ahead += tokens
        return ahead

    def _is_saturated(self) -> bool:
        return self._backlog_tokens >= self._step.tokens or self._backlog_pairs >= self._step.pairs

    def _change_backlog(self, flow: Flow, tokens: int, pairs: int) -> None:
        self._rate.advance(self._clock(), saturated=self._is_saturated())
        self._backlog_pairs += pairs
        self._backlog[flow] += tokens
        if not self._backlog[flow]:
            del self._backlog[flow]
        self._backlog_tokens += tokens
        self._gauge.set(self._backlog_tokens)


class _Rate:
    """The average tokens per second over about the last RATE_MEMORY_S of saturated time.

    Other time is left out: a single prompt does not use the whole engine, and an idle engine computes nothing.
    """

    def __init__(self, now: float) -> None:
        self._measured_until = now
        self._tokens = 0.0
        self._seconds = 0.0
        self.saturated_s = 0.0

    def advance(self, now: float, *, saturated: bool) -> None:
        """Account for the time until now, during which the engine was saturated or not."""
        elapsed_s, self._measured_until = now - self._measured_until, now
        if saturated and elapsed_s > 0:
            kept = math.exp(-elapsed_s / RATE_MEMORY_S)
            self._tokens *= kept
            self._seconds = self._seconds * kept + elapsed_s
            self.saturated_s += elapsed_s

    def count(self, tokens: float) -> None:
        """Add tokens that were computed in saturated time."""
        self._tokens += tokens

    @property
    def value(self) -> float | None:
        return self._tokens / self._seconds if self._seconds >= MIN_MEASURE_S and self._tokens else None


class _PossibleRate:
    """The most tokens per second that the engine can compute, as far as pairs show that were aborted before they ended.

    In the time of such a pair the engine computed less than what had ended since and what was still in it. What is admitted at
    this rate makes shorter steps, until pairs end in time; the limit grows e-fold in RATE_MEMORY_S.
    """

    def __init__(self, now: float) -> None:
        self._limit, self._set_at = math.inf, now

    def at(self, now: float) -> float:
        return self._limit * math.exp(min((now - self._set_at) / RATE_MEMORY_S, _MAX_EXPONENT))

    def limit(self, tokens: float, since: float, now: float) -> None:
        """Limit the rate to the tokens in the time since then, unless it was limited in that time: pairs of a step end together."""
        if since >= self._set_at and now > since and (rate := tokens / (now - since)) < self.at(now):
            self._limit, self._set_at = rate, now

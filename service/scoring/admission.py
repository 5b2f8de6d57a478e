"""Admission by token cost: what can't make its deadline is refused at once, not queued.

Callers share the engine by start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): each pair gets a turn in virtual time,
which the engine takes as its priority, so that a caller with few notes never stands behind all of another's many.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.observability.metrics import Metrics
from service.scoring.types import Priority

# How far back the measured rate looks, in seconds of work.
RATE_MEMORY_S = 10.0
# Less says nothing yet.
SHORTEST_MEASURE_S = 0.5
RETRY_AFTER_RANGE_S = (1.0, 60.0)
# The rate is an average and a wait an estimate: what is admitted must make it within this share of its time.
TIME_SHARE = 0.65
# How much one answer moves the share of prompt tokens that the engine has to compute.
REUSE_WEIGHT = 0.02
# Above any turn of `online`; both fit the engine's 64 bits for as long as a machine lives.
FIRST_TURN: dict[Priority, int] = {"online": 0, "batch": 1 << 60}

ShedReason = Literal["backlog", "deadline"]


class Flow(NamedTuple):
    """What shares fairly with others of its kind: a caller at a priority."""

    priority: Priority
    caller: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """A pair that was admitted: what it is thought to cost, its turn (lower ones go first), and when that was.

    `admitted_at_s` is the clock's, `saturated_s` how long the engine had had enough to do until then.
    """

    flow: Flow
    tokens: int
    turn: int
    admitted_at_s: float
    saturated_s: float


class Admission:
    """The tokens under way, by flow, and the rate at which they get done. Used from one event loop."""

    def __init__(
        self, max_backlog_tokens: int, saturated_tokens: int, clock: Callable[[], float], metrics: Metrics
    ) -> None:
        """`max_backlog_tokens` bounds what goes before a pair and the pair itself, so that k callers have at most
        1 + 1/2 + ... + 1/k times as much under way. `saturated_tokens` is a backlog that fills the engine's step;
        `clock` gives monotonic seconds.
        """
        self._max_backlog_tokens = max_backlog_tokens
        self._clock = clock
        self._gauge = metrics.backlog_tokens
        self._backlog: Counter[Flow] = Counter()
        self._backlog_tokens = 0
        self._rate = _Rate(saturated_tokens, clock())
        self._computed_share = 1.0
        self._virtual_times: Counter[Priority] = Counter()
        self._next_turns: dict[Flow, int] = {}
        metrics.service_rate_tokens.set_function(lambda: self.rate or 0.0)

    @property
    def backlog_tokens(self) -> int:
        """Tokens admitted and not yet released, as estimated."""
        return self._backlog_tokens

    @property
    def backlog_share(self) -> float:
        """The same as a share of the budget; 0 when idle, over 1 when several callers use theirs."""
        return self._backlog_tokens / self._max_backlog_tokens

    @property
    def rate(self) -> float | None:
        """Tokens a second that the engine computes when it has enough to do; None while that was never measured."""
        return self._rate.value

    def why_not(self, flow: Flow, prompt_tokens: int, remaining_s: float) -> ShedReason | None:
        """Why a prompt of that length can't be admitted now, or None.

        What nothing goes before is admitted, however large: one huge pair must not starve for ever. While the engine's next
        step is not filled, nothing waits for its turn; were it refused all the same, a rate once measured too low would keep
        the engine from ever having enough to do, and so from being measured again.
        """
        cost = self._cost(prompt_tokens)
        ahead = self._ahead(flow, cost)
        if not ahead:
            return None
        if ahead + cost > self._max_backlog_tokens:
            return "backlog"
        if not self._rate.is_saturated(self._backlog_tokens):
            return None
        if self.rate and (ahead + cost) / self.rate > remaining_s * TIME_SHARE:
            return "deadline"
        return None

    def admit(self, flow: Flow, prompt_tokens: int) -> Ticket:
        """Count it as under way; `release` it in the end."""
        cost = self._cost(prompt_tokens)
        turn = max(self._virtual_times[flow.priority], self._next_turns.get(flow, 0))
        self._next_turns[flow] = turn + cost
        self._change(flow, cost)
        return Ticket(flow, cost, FIRST_TURN[flow.priority] + turn, self._clock(), self._rate.saturated_s)

    def release(self, ticket: Ticket, prompt_tokens: int = 0, computed_tokens: int = 0) -> None:
        """It is over: done, with what the engine computed of its prompt, or (with neither) aborted or failed."""
        self._change(ticket.flow, -ticket.tokens)
        if prompt_tokens:
            self._rate.count(computed_tokens * self._saturated_share(ticket))
            share = computed_tokens / prompt_tokens
            self._computed_share += REUSE_WEIGHT * (share - self._computed_share)
            self._reach(ticket)
        else:
            # What was aborted took no turn. Time must not leap to it either, past others that still wait for theirs.
            self._next_turns[ticket.flow] -= ticket.tokens
        if not self._backlog_tokens:  # nobody is ahead of anybody
            self._virtual_times.clear()
            self._next_turns.clear()

    def retry_after_s(self, priority: Priority) -> float:
        """Backlog / rate, within RETRY_AFTER_RANGE_S, of what does not yield to that priority; the upper end while nothing is measured."""
        shortest, longest = RETRY_AFTER_RANGE_S
        before = sum(
            tokens
            for flow, tokens in self._backlog.items()
            if FIRST_TURN[flow.priority] <= FIRST_TURN[priority]
        )
        if not self.rate:
            return longest if before else shortest
        return min(longest, max(shortest, before / self.rate))

    def _reach(self, ticket: Ticket) -> None:
        priority = ticket.flow.priority
        turn = ticket.turn - FIRST_TURN[priority]
        self._virtual_times[priority] = max(self._virtual_times[priority], turn)

    def _saturated_share(self, ticket: Ticket) -> float:
        # Of the time that the pair was under way. Whether the engine has enough to do at its end says little: the pairs of
        # one step end together, and all but the first then see a backlog that is nearly gone.
        under_way_s = self._clock() - ticket.admitted_at_s
        return (self._rate.saturated_s - ticket.saturated_s) / under_way_s if under_way_s > 0 else 0.0

    def _cost(self, prompt_tokens: int) -> int:
        return math.ceil(prompt_tokens * self._computed_share)

    def _ahead(self, flow: Flow, cost: int) -> int:
        """Tokens that go before the next pair of this flow: of each equal, no more than the flow has itself by then."""
        own = self._backlog[flow] + cost
        ahead = 0
        for other, tokens in self._backlog.items():
            if other.priority == flow.priority:
                ahead += min(tokens, own)
            elif FIRST_TURN[other.priority] < FIRST_TURN[flow.priority]:
                ahead += tokens
        return ahead

    def _change(self, flow: Flow, tokens: int) -> None:
        self._rate.pass_time(self._clock(), self._backlog_tokens)
        self._backlog[flow] += tokens
        if not self._backlog[flow]:
            del self._backlog[flow]
        self._backlog_tokens += tokens
        self._gauge.set(self._backlog_tokens)


class _Rate:
    """Tokens a second over the last RATE_MEMORY_S of saturated time.

    A lone prompt is slow for its tokens, and an idle engine does none: neither says what it can do.
    """

    def __init__(self, saturated_tokens: int, now: float) -> None:
        self._saturated_tokens = saturated_tokens
        self._passed_to = now
        self._tokens = 0.0
        self._seconds = 0.0
        self.saturated_s = 0.0

    def pass_time(self, now: float, backlog_tokens: int) -> None:
        """There was such a backlog up to now."""
        elapsed_s, self._passed_to = now - self._passed_to, now
        if self.is_saturated(backlog_tokens) and elapsed_s > 0:
            kept = math.exp(-elapsed_s / RATE_MEMORY_S)
            self._tokens *= kept
            self._seconds = self._seconds * kept + elapsed_s
            self.saturated_s += elapsed_s

    def is_saturated(self, backlog_tokens: int) -> bool:
        """Whether such a backlog fills the engine's step."""
        return backlog_tokens >= self._saturated_tokens

    def count(self, tokens: float) -> None:
        """So many were done in saturated time."""
        self._tokens += tokens

    @property
    def value(self) -> float | None:
        return self._tokens / self._seconds if self._seconds >= SHORTEST_MEASURE_S and self._tokens else None

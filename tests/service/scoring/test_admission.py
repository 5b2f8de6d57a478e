import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.observability.metrics import Metrics
from service.scoring.admission import (
    FIRST_TURN,
    RATE_MEMORY_S,
    RETRY_AFTER_RANGE_S,
    TIME_SHARE,
    Admission,
    Flow,
    FullStep,
    Ticket,
)
from tests.clock import Clock

ANN, BOB, BATCH = Flow("online", "ann"), Flow("online", "bob"), Flow("batch", "ann")
LONG_S = 1e9
STEP = FullStep(tokens=100, pairs=50)


class Harness(Admission):
    """An admission with a clock. After `measure`, its rate is 1,000 tokens per second."""

    def __init__(self, limit: int = 100_000) -> None:
        self.clock, self.registry = Clock(), CollectorRegistry()
        super().__init__(limit, STEP, self.clock, Metrics(self.registry))

    def measure(self) -> None:
        ticket = self.admit(ANN, 2_000)
        self.clock.now += 2
        self.finish(ticket)

    def measure_too_low(self) -> None:
        slow = self.admit(ANN, 2_000)
        self.clock.now += 100  # another program used the machine
        self.finish(slow)

    def finish(self, *tickets: Ticket) -> None:
        """Release pairs that the engine computed in full."""
        for ticket in tickets:
            self.release(ticket, ticket.tokens, ticket.tokens)

    def admits(self, flow: Flow, tokens: int, remaining_s: float = LONG_S) -> bool:
        return self.why_not(flow, tokens, remaining_s) is None

    def fill(self, flow: Flow, tokens: int, remaining_s: float) -> list[Ticket]:
        """Admit pairs of 100 tokens until one is shed or `tokens` are admitted."""
        tickets: list[Ticket] = []
        while self.admits(flow, 100, remaining_s) and len(tickets) * 100 < tokens:
            tickets.append(self.admit(flow, 100))
        return tickets


def test_the_backlog_stays_within_its_limit() -> None:
    harness = Harness(100)
    ticket = harness.admit(ANN, 60)
    assert harness.admits(ANN, 40)
    assert harness.why_not(ANN, 41, LONG_S) == "backlog"
    assert harness.backlog_share == 0.6
    harness.release(ticket)
    assert harness.admits(ANN, 100)
    assert harness.registry.get_sample_value("notegrade_backlog_tokens") == 0


def test_a_caller_can_not_use_the_budget_of_the_others() -> None:
    harness = Harness(10_000)
    greedy = harness.fill(ANN, 100_000, LONG_S)
    assert sum(ticket.tokens for ticket in greedy) == 10_000
    assert sum(ticket.tokens for ticket in harness.fill(BOB, 100_000, LONG_S)) == 5_000
    assert harness.why_not(ANN, 1, LONG_S) == "backlog"
    assert harness.backlog_share == 1.5


def test_batch_can_not_use_the_budget_of_online() -> None:
    harness = Harness(10_000)
    harness.fill(BATCH, 100_000, LONG_S)
    assert harness.backlog_tokens == 10_000
    assert sum(ticket.tokens for ticket in harness.fill(ANN, 100_000, LONG_S)) == 10_000
    assert harness.why_not(BATCH, 1, LONG_S) == "backlog"


def test_an_idle_engine_admits_a_pair_over_the_limit() -> None:
    harness = Harness(100)
    harness.measure()
    assert harness.admits(ANN, 1_000, remaining_s=0.001)
    harness.admit(ANN, 1_000)
    assert not harness.admits(ANN, 1)


@given(
    st.lists(st.tuples(st.integers(1, 80), st.booleans(), st.sampled_from([ANN, BOB, BATCH])), max_size=40)
)
def test_the_backlog_is_the_sum_of_admitted_and_unreleased_pairs(steps: list[tuple[int, bool, Flow]]) -> None:
    harness = Harness(100)
    held: list[Ticket] = []
    for cost, release, flow in steps:
        if release and held:
            harness.release(held.pop(0))
        elif harness.admits(flow, cost):
            held.append(harness.admit(flow, cost))
        by_flow = {one: sum(t.tokens for t in held if t.flow == one) for one in (ANN, BOB, BATCH)}
        assert harness.backlog_tokens == sum(by_flow.values())
        # For the second caller, no more of the first one's tokens count than its own: half the limit is left for it.
        assert max(by_flow.values()) <= 100
        assert by_flow[ANN] + by_flow[BOB] <= 150
    for ticket in held:
        harness.release(ticket)
    # No state is kept for callers whose pairs have ended.
    assert not harness._backlog
    assert not harness._next_turns


def test_a_pair_that_can_not_meet_its_deadline_is_shed() -> None:
    harness = Harness()
    harness.measure()
    harness.admit(ANN, 4_000)
    makes_it_in = 5_000 / 1_000 / TIME_SHARE
    assert harness.admits(ANN, 1_000, makes_it_in + 0.01)
    assert harness.why_not(ANN, 1_000, makes_it_in - 0.01) == "deadline"


def test_a_deadline_that_an_idle_engine_can_not_meet_is_too_short() -> None:
    harness = Harness()
    harness.measure()
    harness.admit(ANN, 4_000)
    second = 1 / TIME_SHARE
    assert harness.why_not(ANN, 1_000, 4 * second) == "deadline"
    assert harness.why_not(ANN, 1_000, 4 * second, own_tokens=3_000) == "deadline"
    assert harness.why_not(ANN, 1_000, 4 * second, own_tokens=3_001) == "too_short"
    assert harness.why_not(ANN, 1_000, 0.99 * second) == "too_short"
    assert harness.why_not(ANN, 1, -1) == "too_short"


def test_without_a_measured_rate_only_the_limit_counts() -> None:
    harness = Harness()
    harness.admit(ANN, 50_000)
    assert harness.rate is None
    assert harness.admits(ANN, 1_000, remaining_s=0.001)


def test_the_rate_is_measured_only_in_saturated_time() -> None:
    harness = Harness()
    harness.measure()
    assert harness.rate == pytest.approx(1_000)
    # An idle hour and a slow single prompt do not change the rate.
    harness.clock.now += 3_600
    lone = harness.admit(ANN, STEP.tokens - 1)
    harness.clock.now += 5
    harness.finish(lone)
    assert harness.rate == pytest.approx(1_000)
    slow = harness.admit(ANN, 5_000)
    harness.clock.now += 50
    harness.finish(slow)
    assert 100 <= (harness.rate or 0) < 110


def test_all_pairs_of_a_step_count_although_the_first_empties_the_backlog() -> None:
    harness = Harness()
    for _ in range(20):
        step = [harness.admit(ANN, 20) for _ in range(6)]  # just more than a full step
        harness.clock.now += 0.12
        harness.finish(*step)
    assert harness.rate == pytest.approx(1_000, rel=0.01)


def test_a_pair_counts_only_for_the_saturated_share_of_its_time() -> None:
    harness = Harness()
    harness.measure()
    for _ in range(200):
        first = [harness.admit(ANN, 20) for _ in range(4)]
        harness.clock.now += 0.09
        last = [harness.admit(ANN, 20) for _ in range(2)]
        harness.clock.now += 0.01  # saturated for a tenth of most pairs' time
        harness.finish(*(first + last))
    assert 0 < (harness.rate or 0) < 6_000


def test_a_rate_that_was_measured_too_low_recovers() -> None:
    harness = Harness()
    harness.measure_too_low()
    assert harness.rate == pytest.approx(20)
    for _ in range(300):
        held = harness.fill(ANN, 10_000, remaining_s=1.0)
        # The engine's steps are full, however wrong the rate is.
        assert sum(ticket.tokens for ticket in held) >= STEP.tokens
        harness.clock.now += 0.12
        harness.finish(*held)
    assert (harness.rate or 0) > 500


def test_nothing_is_shed_while_the_next_step_is_not_full() -> None:
    harness = Harness()
    harness.measure_too_low()
    harness.admit(BOB, STEP.tokens - 1)
    assert harness.admits(ANN, 1_000, remaining_s=0.001)
    harness.admit(BOB, 1)
    assert not harness.admits(ANN, 1, remaining_s=0.001)


def serve(harness: Harness, deadline_s: float, per_s: float) -> int:
    """Send pairs of 10 tokens to an engine that computes 100 tokens a second, in steps.

    Returns how many end in time in the minute after the first 20 seconds.
    """
    waiting: list[tuple[Ticket, float]] = []
    in_step: list[tuple[Ticket, float]] = []
    start = arrives = harness.clock.now
    step_ends, in_time = math.inf, 0
    while (now := min(arrives, step_ends, *(at for _, at in (*waiting, *in_step)))) < start + 80:
        harness.clock.now = now
        for ticket, _ in (each for each in (*waiting, *in_step) if each[1] <= now):
            harness.release(ticket)
        waiting, in_step = ([each for each in each_of if each[1] > now] for each_of in (waiting, in_step))
        if arrives <= now:
            arrives += 1 / per_s
            if harness.admits(ANN, 10, deadline_s):
                waiting.append((harness.admit(ANN, 10), now + deadline_s))
        if step_ends <= now:
            harness.finish(*(ticket for ticket, _ in in_step))
            in_time += len(in_step) * (now > start + 20)
            in_step, step_ends = [], math.inf
        if step_ends == math.inf and waiting:
            in_step, waiting = waiting[: STEP.tokens // 10], waiting[STEP.tokens // 10 :]
            step_ends = now + len(in_step) * 10 / 100
    return in_time


@pytest.mark.parametrize("per_s", [20, 50])
@pytest.mark.parametrize("deadline_s", [0.5, 0.8, 1.5, 3.0])
def test_pairs_end_in_time_also_where_a_full_step_takes_longer_than_their_deadline(
    deadline_s: float, per_s: float
) -> None:
    assert serve(Harness(), deadline_s, per_s) > 300  # at most 600; without the limit by late pairs


def test_late_pairs_of_low_priority_do_not_limit_the_rate_below_what_was_computed() -> None:
    harness = Harness()
    harness.measure()
    late = harness.admit(BATCH, 1_000)
    for _ in range(20):
        online = harness.admit(ANN, 1_000)
        harness.clock.now += 1
        harness.finish(online)
    harness.release(late)
    assert harness.admits(ANN, 500)
    harness.admit(ANN, 500)
    assert harness.admits(ANN, 100, remaining_s=600 / 1_000 / TIME_SHARE + 0.01)


def test_the_limit_by_late_pairs_ends() -> None:
    harness = Harness()
    late = harness.admit(ANN, 60)
    harness.clock.now += 1
    harness.release(late)  # at most 60 tokens a second
    harness.admit(ANN, 20)
    assert harness.admits(ANN, 19, remaining_s=1)
    assert not harness.admits(ANN, 60, remaining_s=1)
    harness.clock.now += 30 * RATE_MEMORY_S
    assert harness.admits(ANN, 60, remaining_s=1)
    harness.clock.now += 1e6
    assert harness.admits(ANN, 60, remaining_s=1)


def test_a_step_is_full_at_its_pairs_as_well_as_at_its_tokens() -> None:
    harness = Harness()
    harness.measure()
    short = [harness.admit(ANN, 1) for _ in range(STEP.pairs - 1)]
    assert harness.admits(ANN, 1, remaining_s=0.001)
    short.append(harness.admit(ANN, 1))
    assert not harness.admits(ANN, 1, remaining_s=0.001)
    harness.release(short[0])
    assert harness.admits(ANN, 1, remaining_s=0.001)


def test_the_first_prompts_of_vectors_do_not_cost_the_prefix_that_they_share() -> None:
    harness = Harness()
    assert harness.admit(ANN, 70).tokens == 70
    assert harness.admit(ANN, 70, "vectors").tokens == 14
    for _ in range(500):
        harness.release(harness.admit(ANN, 70, "vectors"), 70, 7)
    assert harness.admit(ANN, 70, "vectors").tokens == 8  # rounded up
    assert harness.admit(ANN, 70).tokens == 70


def test_aborted_pairs_do_not_count_for_the_rate() -> None:
    harness = Harness()
    harness.measure()
    ticket = harness.admit(ANN, 5_000)
    harness.clock.now += 2
    harness.release(ticket)
    assert 0 < (harness.rate or 0) < 600


def test_tokens_that_the_engine_reuses_cost_nothing() -> None:
    harness = Harness()
    for _ in range(500):
        ticket = harness.admit(ANN, 1_000)
        harness.clock.now += 0.25
        harness.release(ticket, 1_000, 250)
    assert harness.admit(ANN, 1_000).tokens == 251  # rounded up
    assert harness.rate == pytest.approx(1_000, rel=0.01)


def test_batch_waits_for_online_and_not_the_reverse() -> None:
    harness = Harness()
    harness.measure()
    harness.fill(BATCH, 8_000, LONG_S)
    assert harness.admits(ANN, 500, remaining_s=1)
    first, second = harness.admit(BATCH, 100), harness.admit(ANN, 100)
    assert second.turn < FIRST_TURN["batch"] <= first.turn
    harness.fill(ANN, 4_000, LONG_S)
    assert not harness.admits(BATCH, 100, remaining_s=4)


def test_a_caller_with_few_pairs_is_admitted_beside_one_with_many() -> None:
    harness = Harness()
    harness.measure()
    greedy = harness.fill(ANN, 100_000, remaining_s=5)
    assert sum(ticket.tokens for ticket in greedy) == pytest.approx(5 * 1_000 * TIME_SHARE, abs=100)
    # After the other caller's pairs it would take over three seconds; beside them, each caller gets half.
    small = harness.fill(BOB, 1_600, remaining_s=5)
    assert len(small) == 16
    assert small[0].turn <= greedy[0].turn
    assert small[-1].turn < greedy[len(small)].turn
    assert not harness.admits(ANN, 100, remaining_s=5)


def test_turns_alternate_between_callers_in_any_order_of_arrival() -> None:
    harness = Harness()
    ann = [harness.admit(ANN, 100) for _ in range(50)]
    harness.finish(*ann[:10])
    bob = [harness.admit(BOB, 100) for _ in range(5)]
    waiting = sorted([*ann[10:], *bob], key=lambda ticket: ticket.turn)
    served = [ticket.flow.caller for ticket in waiting[:11]]
    assert served.count("bob") == 5


def test_a_caller_gets_no_credit_for_an_idle_time() -> None:
    harness = Harness()
    ann = [harness.admit(ANN, 100) for _ in range(50)]
    harness.finish(*ann[:40])
    bob = harness.admit(BOB, 100)
    assert bob.turn == ann[39].turn


def test_virtual_time_does_not_advance_to_the_turn_of_an_aborted_pair() -> None:
    """Otherwise the next caller would come after pairs that have not had their turn."""
    harness = Harness()
    waiting = [harness.admit(ANN, 100) for _ in range(10)]
    aborted = [harness.admit(ANN, 100) for _ in range(10)]
    for ticket in aborted:
        harness.release(ticket)
    assert harness.admit(BOB, 100).turn == waiting[0].turn
    # The aborted pair does not count against its caller.
    assert harness.admit(ANN, 100).turn == aborted[0].turn


def test_each_priority_has_its_own_virtual_time() -> None:
    harness = Harness()
    online = [harness.admit(ANN, 100) for _ in range(10)]
    batch = [harness.admit(BATCH, 100) for _ in range(2)]
    harness.finish(*online[:8])
    other = harness.admit(Flow("batch", "bob"), 100)
    assert other.turn == batch[0].turn


def test_retry_after_counts_the_backlog_of_its_priority_and_above() -> None:
    harness = Harness()
    harness.measure()
    harness.admit(BATCH, 8_000)
    harness.admit(ANN, 2_000)
    rate = harness.rate or 0
    assert harness.retry_after_s("online") == pytest.approx(2_000 / rate)
    assert harness.retry_after_s("batch") == pytest.approx(10_000 / rate)


def test_retry_after_is_backlog_over_rate_within_its_range() -> None:
    shortest, longest = RETRY_AFTER_RANGE_S
    harness = Harness()
    assert harness.retry_after_s("online") == shortest
    held = harness.admit(ANN, 5_000)
    assert harness.retry_after_s("online") == longest  # no rate is measured yet
    harness.release(held)
    harness.measure()
    harness.admit(ANN, 8_000)
    rate = harness.rate or 0
    assert harness.retry_after_s("online") == pytest.approx(8_000 / rate)
    harness.admit(ANN, 90_000)
    assert harness.retry_after_s("online") == longest
    assert harness.registry.get_sample_value("notegrade_service_rate_tokens") == rate

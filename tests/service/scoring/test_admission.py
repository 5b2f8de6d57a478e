import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.observability.metrics import Metrics
from service.scoring.admission import FIRST_TURN, RETRY_AFTER_RANGE_S, TIME_SHARE, Admission, Flow, Ticket

ANN, BOB, BATCH = Flow("online", "ann"), Flow("online", "bob"), Flow("batch", "ann")
LONG_S = 1e9
SATURATED = 100


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """An admission whose engine does 1,000 tokens a second, once `measure` was called."""

    def __init__(self, limit: int = 100_000) -> None:
        self.clock, self.registry = Clock(), CollectorRegistry()
        self.admission = Admission(limit, SATURATED, self.clock, Metrics(self.registry))

    def measure(self) -> None:
        ticket = self.admission.admit(ANN, 2_000)
        self.clock.now_s += 2
        self.admission.release(ticket, 2_000, 2_000)

    def admits(self, flow: Flow, tokens: int, remaining_s: float = LONG_S) -> bool:
        return self.admission.why_not(flow, tokens, remaining_s) is None

    def fill(self, flow: Flow, tokens: int, remaining_s: float) -> list[Ticket]:
        """Admit pairs of 100 tokens until one is refused, or so many tokens are in."""
        tickets: list[Ticket] = []
        while self.admits(flow, 100, remaining_s) and len(tickets) * 100 < tokens:
            tickets.append(self.admission.admit(flow, 100))
        return tickets


def test_budget_is_kept() -> None:
    house = House(100)
    ticket = house.admission.admit(ANN, 60)
    assert house.admits(ANN, 40)
    assert house.admission.why_not(ANN, 41, LONG_S) == "backlog"
    assert house.admission.backlog_share == 0.6
    house.admission.release(ticket)
    assert house.admits(ANN, 100)
    assert house.registry.get_sample_value("notegrade_backlog_tokens") == 0


def test_one_caller_can_not_use_up_the_budget_of_the_others() -> None:
    house = House(10_000)
    greedy = house.fill(ANN, 100_000, LONG_S)
    assert sum(ticket.tokens for ticket in greedy) == 10_000
    assert sum(ticket.tokens for ticket in house.fill(BOB, 100_000, LONG_S)) == 5_000
    assert house.admission.why_not(ANN, 1, LONG_S) == "backlog"
    assert house.admission.backlog_share == 1.5


def test_batch_can_not_use_up_the_budget_of_online() -> None:
    house = House(10_000)
    house.fill(BATCH, 100_000, LONG_S)
    assert house.admission.backlog_tokens == 10_000
    assert sum(ticket.tokens for ticket in house.fill(ANN, 100_000, LONG_S)) == 10_000
    assert house.admission.why_not(BATCH, 1, LONG_S) == "backlog"


def test_an_idle_engine_admits_even_what_is_over_the_budget() -> None:
    house = House(100)
    house.measure()
    assert house.admits(ANN, 1_000, remaining_s=0.001)
    house.admission.admit(ANN, 1_000)
    assert not house.admits(ANN, 1)


@given(
    st.lists(st.tuples(st.integers(1, 80), st.booleans(), st.sampled_from([ANN, BOB, BATCH])), max_size=40)
)
def test_backlog_is_what_was_admitted_and_not_released(steps: list[tuple[int, bool, Flow]]) -> None:
    house = House(100)
    held: list[Ticket] = []
    for cost, release, flow in steps:
        if release and held:
            house.admission.release(held.pop(0))
        elif house.admits(flow, cost):
            held.append(house.admission.admit(flow, cost))
        by_flow = {one: sum(t.tokens for t in held if t.flow == one) for one in (ANN, BOB, BATCH)}
        assert house.admission.backlog_tokens == sum(by_flow.values())
        # Of the second caller, no more than goes before it is counted: half a budget is left for it, however much the first has.
        assert max(by_flow.values()) <= 100
        assert by_flow[ANN] + by_flow[BOB] <= 150
    for ticket in held:
        house.admission.release(ticket)
    # Nothing is kept of callers who have left.
    assert not house.admission._backlog
    assert not house.admission._next_turns


def test_what_can_t_make_its_deadline_is_refused() -> None:
    house = House()
    house.measure()
    house.admission.admit(ANN, 4_000)
    makes_it_in = 5_000 / 1_000 / TIME_SHARE
    assert house.admits(ANN, 1_000, makes_it_in + 0.01)
    assert house.admission.why_not(ANN, 1_000, makes_it_in - 0.01) == "deadline"


def test_before_anything_is_measured_only_the_budget_counts() -> None:
    house = House()
    house.admission.admit(ANN, 50_000)
    assert house.admission.rate is None
    assert house.admits(ANN, 1_000, remaining_s=0.001)


def test_the_rate_is_of_saturated_time_alone() -> None:
    house = House()
    house.measure()
    assert house.admission.rate == pytest.approx(1_000)
    # An idle hour, and a lone prompt that took its time, say nothing of what the engine can do.
    house.clock.now_s += 3_600
    lone = house.admission.admit(ANN, SATURATED - 1)
    house.clock.now_s += 5
    house.admission.release(lone, SATURATED - 1, SATURATED - 1)
    assert house.admission.rate == pytest.approx(1_000)
    slow = house.admission.admit(ANN, 5_000)
    house.clock.now_s += 50
    house.admission.release(slow, 5_000, 5_000)
    assert house.admission.rate is not None
    assert 100 <= house.admission.rate < 110


def test_the_pairs_of_one_step_count_all_though_the_backlog_is_gone_after_the_first() -> None:
    house = House()
    for _ in range(20):
        step = [house.admission.admit(ANN, 20) for _ in range(6)]  # just over what fills a step
        house.clock.now_s += 0.12
        for ticket in step:
            house.admission.release(ticket, 20, 20)
    assert house.admission.rate == pytest.approx(1_000, rel=0.01)


def test_a_moment_of_saturation_is_no_measure_of_all_that_was_under_way() -> None:
    house = House()
    house.measure()
    for _ in range(200):
        first = [house.admission.admit(ANN, 20) for _ in range(4)]
        house.clock.now_s += 0.09
        last = [house.admission.admit(ANN, 20) for _ in range(2)]
        house.clock.now_s += 0.01  # saturated for a tenth of the time of most
        for ticket in first + last:
            house.admission.release(ticket, 20, 20)
    assert house.admission.rate is not None
    assert house.admission.rate < 6_000


def test_a_rate_measured_too_low_does_not_stay_so() -> None:
    house = House()
    slow = house.admission.admit(ANN, 2_000)
    house.clock.now_s += 100  # something else had the machine
    house.admission.release(slow, 2_000, 2_000)
    assert house.admission.rate == pytest.approx(20)
    for _ in range(300):
        held = house.fill(ANN, 10_000, remaining_s=1.0)
        # However wrong the rate is, the engine's steps are full.
        assert sum(ticket.tokens for ticket in held) >= SATURATED
        house.clock.now_s += 0.12
        for ticket in held:
            house.admission.release(ticket, ticket.tokens, ticket.tokens)
    assert house.admission.rate is not None
    assert house.admission.rate > 500


def test_while_the_next_step_is_not_filled_nothing_is_refused() -> None:
    house = House()
    slow = house.admission.admit(ANN, 2_000)
    house.clock.now_s += 100
    house.admission.release(slow, 2_000, 2_000)
    house.admission.admit(BOB, SATURATED - 1)
    assert house.admits(ANN, 1_000, remaining_s=0.001)
    house.admission.admit(BOB, 1)
    assert not house.admits(ANN, 1, remaining_s=0.001)


def test_aborted_work_is_no_work_done() -> None:
    house = House()
    house.measure()
    ticket = house.admission.admit(ANN, 5_000)
    house.clock.now_s += 2
    house.admission.release(ticket)
    assert house.admission.rate is not None
    assert house.admission.rate < 600


def test_tokens_that_the_engine_reuses_cost_nothing() -> None:
    house = House()
    for _ in range(500):
        ticket = house.admission.admit(ANN, 1_000)
        house.clock.now_s += 0.25
        house.admission.release(ticket, 1_000, 250)
    assert house.admission.admit(ANN, 1_000).tokens == 251  # rounded up
    assert house.admission.rate == pytest.approx(1_000, rel=0.01)


def test_batch_waits_for_online_and_online_never_for_batch() -> None:
    house = House()
    house.measure()
    house.fill(BATCH, 8_000, LONG_S)
    assert house.admits(ANN, 500, remaining_s=1)
    first, second = house.admission.admit(BATCH, 100), house.admission.admit(ANN, 100)
    assert second.turn < FIRST_TURN["batch"] <= first.turn
    house.fill(ANN, 4_000, LONG_S)
    assert not house.admits(BATCH, 100, remaining_s=4)


def test_a_caller_with_little_is_admitted_beside_one_with_much() -> None:
    house = House()
    house.measure()
    greedy = house.fill(ANN, 100_000, remaining_s=5)
    assert sum(ticket.tokens for ticket in greedy) == pytest.approx(5 * 1_000 * TIME_SHARE, abs=100)
    # Behind the greedy one's it would take over three seconds; beside it, each gets half.
    small = house.fill(BOB, 1_600, remaining_s=5)
    assert len(small) == 16
    assert small[0].turn <= greedy[0].turn
    assert small[-1].turn < greedy[len(small)].turn
    assert not house.admits(ANN, 100, remaining_s=5)


def test_turns_alternate_whatever_was_there_first() -> None:
    house = House()
    ann = [house.admission.admit(ANN, 100) for _ in range(50)]
    for ticket in ann[:10]:
        house.admission.release(ticket, 100, 100)
    bob = [house.admission.admit(BOB, 100) for _ in range(5)]
    waiting = sorted([*ann[10:], *bob], key=lambda ticket: ticket.turn)
    served = [ticket.flow.caller for ticket in waiting[:11]]
    assert served.count("bob") == 5


def test_a_caller_who_was_away_has_saved_nothing_up() -> None:
    house = House()
    ann = [house.admission.admit(ANN, 100) for _ in range(50)]
    for ticket in ann[:40]:
        house.admission.release(ticket, 100, 100)
    bob = house.admission.admit(BOB, 100)
    assert bob.turn == ann[39].turn


def test_time_does_not_leap_to_the_turn_of_aborted_work() -> None:
    """Or whoever comes next would stand behind what has not had its turn."""
    house = House()
    waiting = [house.admission.admit(ANN, 100) for _ in range(10)]
    aborted = [house.admission.admit(ANN, 100) for _ in range(10)]
    for ticket in aborted:
        house.admission.release(ticket)
    assert house.admission.admit(BOB, 100).turn == waiting[0].turn
    # And what was never done is not held against its caller.
    assert house.admission.admit(ANN, 100).turn == aborted[0].turn


def test_time_passes_for_each_priority_alone() -> None:
    house = House()
    online = [house.admission.admit(ANN, 100) for _ in range(10)]
    batch = [house.admission.admit(BATCH, 100) for _ in range(2)]
    for ticket in online[:8]:
        house.admission.release(ticket, 100, 100)
    other = house.admission.admit(Flow("batch", "bob"), 100)
    assert other.turn == batch[0].turn


def test_retry_after_is_of_what_does_not_yield() -> None:
    house = House()
    house.measure()
    house.admission.admit(BATCH, 8_000)
    house.admission.admit(ANN, 2_000)
    rate = house.admission.rate
    assert rate is not None
    assert house.admission.retry_after_s("online") == pytest.approx(2_000 / rate)
    assert house.admission.retry_after_s("batch") == pytest.approx(10_000 / rate)


def test_retry_after_is_backlog_over_rate_within_its_range() -> None:
    shortest, longest = RETRY_AFTER_RANGE_S
    house = House()
    assert house.admission.retry_after_s("online") == shortest
    held = house.admission.admit(ANN, 5_000)
    assert house.admission.retry_after_s("online") == longest  # nothing measured yet
    house.admission.release(held)
    house.measure()
    house.admission.admit(ANN, 8_000)
    rate = house.admission.rate
    assert rate is not None
    assert house.admission.retry_after_s("online") == pytest.approx(8_000 / rate)
    house.admission.admit(ANN, 90_000)
    assert house.admission.retry_after_s("online") == longest
    assert house.registry.get_sample_value("notegrade_service_rate_tokens") == rate

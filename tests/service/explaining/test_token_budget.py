import pytest

from service.explaining.token_budget import TokenBudget
from tests.clock import Clock


def test_the_budget_refills_at_its_rate_and_saves_up_one_second() -> None:
    clock = Clock()
    budget = TokenBudget(100, clock)
    assert budget.wait_s() == 0
    budget.spend(350)
    assert budget.wait_s() == pytest.approx(2.5)
    clock.now += 2
    assert budget.wait_s() == pytest.approx(0.5)
    clock.now += 1000
    budget.spend(150)
    assert budget.wait_s() == pytest.approx(0.5)

import asyncio

import pytest

from service.scoring.single_flight import SingleFlight
from tests.waiting import until

Flights = SingleFlight[str, str]


class Call:
    """A call that a test ends, and that records whether it was cancelled."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = False
        self.end = asyncio.Event()

    async def __call__(self) -> str:
        self.runs += 1
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "result"


@pytest.fixture
def flights() -> Flights:
    return SingleFlight()


async def test_every_attached_request_gets_the_calls_result(flights: Flights) -> None:
    call = Call()
    first = flights.start("key", call())
    second = flights.join("key")
    assert second is first
    call.end.set()
    await asyncio.wait({first.task})
    assert (first.task.result(), call.runs) == ("result", 1)


async def test_a_finished_call_is_forgotten(flights: Flights) -> None:
    call = Call()
    call.end.set()
    await flights.start("key", call()).task
    await asyncio.sleep(0)
    assert flights.join("key") is None
    assert len(flights) == 0


async def test_the_last_request_to_detach_cancels_the_call(flights: Flights) -> None:
    call = Call()
    flight = flights.start("key", call())
    flights.join("key")
    await until(lambda: call.runs == 1)
    flight.detach()
    await asyncio.sleep(0)
    assert not call.cancelled
    flight.detach()
    assert flights.join("key") is None  # at once: a new request must not join a call that is being cancelled
    await asyncio.wait({flight.task})
    assert call.cancelled


async def test_a_request_after_that_starts_a_new_call(flights: Flights) -> None:
    old, new = Call(), Call()
    leaving = flights.start("key", old())
    leaving.detach()
    fresh = flights.start("key", new())
    await asyncio.wait({leaving.task})
    # The end of the old call must not remove the new one.
    assert flights.join("key") is fresh
    new.end.set()
    assert await fresh.task == "result"


async def test_only_the_first_request_claims_the_result(flights: Flights) -> None:
    call = Call()
    flight = flights.start("key", call())
    assert [flight.claim(), flight.claim()] == [True, False]
    flight.detach()
    await asyncio.wait({flight.task})


async def test_close_cancels_all_calls_and_waits_for_them(flights: Flights) -> None:
    calls = [Call(), Call()]
    tasks = [flights.start(str(i), call()).task for i, call in enumerate(calls)]
    await until(lambda: calls[1].runs == 1)
    await flights.close()
    assert all(task.cancelled() for task in tasks)
    assert all(call.cancelled for call in calls)
    assert len(flights) == 0


async def test_a_calls_exception_reaches_only_its_attached_requests(flights: Flights) -> None:
    async def fail() -> str:
        raise ValueError("broken")

    flight = flights.start("key", fail())
    await asyncio.wait({flight.task})
    with pytest.raises(ValueError, match="broken"):
        flight.task.result()
    assert flights.join("key") is None

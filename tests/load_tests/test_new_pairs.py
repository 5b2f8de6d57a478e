import pytest

from load_tests.new_pairs import NewPairs, count_scored, latency_percentile_ms, results_of
from load_tests.overload import report
from load_tests.processes import free_port
from load_tests.shadow_cost import run_stub


async def test_open_loop_scores_new_pairs_of_a_service() -> None:
    async with run_stub() as url:
        drive = await NewPairs(url, seed=1, notes=2).send(pairs_per_s=100, seconds=0.5)
    assert {each.outcome for each in drive.sent} == {"answered"}
    assert {count_scored(each) for each in drive.sent} == {2}
    assert len(results_of(drive.sent[0])) == 2
    assert 0 < latency_percentile_ms(drive.sent, 50) <= latency_percentile_ms(drive.sent, 99)
    level = report(1.0, drive, 0.5)
    assert level["goodput_pairs_per_s"] == 2 * len(drive.sent) / 0.5
    assert level["answered_p99_ms"] == latency_percentile_ms(drive.sent, 99)


async def test_capacity_is_that_of_a_closed_loop() -> None:
    async with run_stub() as url:
        assert await NewPairs(url, seed=1).measure_capacity(0.2) > 0


async def test_service_that_scores_nothing_is_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RuntimeError, match=r"scored no pair: \{'failed': \d+\}"):
        await NewPairs(url, seed=1).measure_capacity(0.05)

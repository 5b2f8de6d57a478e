import pytest

from load_tests.bench.drive import closed_loop, make_jobs, read_grades
from load_tests.bench.peer import Request
from load_tests.bench.peers.grades import calibrated_grade
from load_tests.bench.peers.prompts import EngineAlone
from service.contract.checkpoint import Checkpoint


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_engine_alone_agrees_with_the_probes(default_checkpoint: Checkpoint) -> None:
    probes = default_checkpoint.probes[:8]
    prompts = []
    for probe in probes:
        query, note = probe.canonical()
        prompts += default_checkpoint.renderer.render(query, [note], probe.criteria)
    engine = EngineAlone(default_checkpoint)
    request = Request("", ({},) * len(prompts), tuple(prompt.token_ids for prompt in prompts))
    [job] = make_jobs(engine, [request])
    with engine.running() as running:
        drive = await closed_loop(running.url, [job], clients=1, timeout_s=300)
    expected = [calibrated_grade(probe.distribution, default_checkpoint) for probe in probes]
    assert read_grades(engine, drive.sent[0], job) == pytest.approx(expected, abs=0.1)

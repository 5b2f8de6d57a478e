"""Faults of the encoder's process. test_encoder_behaviour.py tests what all encoders share."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import EncoderError
from service.vectors.encoder_child import load_encoder
from service.vectors.process_encoder import ProcessEncoder
from tests.processes import ROOT, is_running, state_of
from tests.service.vectors.toy_child import DIE, HANG
from tests.service.vectors.toy_encoder import toy_encoder
from tests.tiny_base import make_micro_model
from tests.waiting import until, wait_until

NOTES = [(1, 2, 3), (4,)]
PARENT = """
import asyncio, sys
from tests.service.vectors.toy_child import HANG
from tests.service.vectors.toy_encoder import toy_encoder

async def main():
    encoder = toy_encoder()
    await encoder.start()
    print(encoder.pid, flush=True)
    await encoder.encode([(HANG,)])

asyncio.run(main())
"""


@pytest.fixture
async def encoder() -> AsyncIterator[ProcessEncoder]:
    made = toy_encoder()
    await made.start()
    yield made
    await made.close()


def pid_of(encoder: ProcessEncoder) -> int:
    assert encoder.pid
    return encoder.pid


async def test_the_child_has_the_lowest_priority_and_ends_with_the_encoder(encoder: ProcessEncoder) -> None:
    pid = pid_of(encoder)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    await encoder.close()
    assert not is_running(pid)


async def test_ctrl_c_is_left_to_the_service(encoder: ProcessEncoder) -> None:
    os.kill(pid_of(encoder), signal.SIGINT)
    assert len(await encoder.encode(NOTES)) == 2


async def test_a_child_that_dies_fails_its_batch_and_is_started_again(encoder: ProcessEncoder) -> None:
    before = await encoder.encode(NOTES)
    with pytest.raises(EncoderError, match="died"):
        await encoder.encode([(DIE,)])
    with pytest.raises(EncoderError, match="not running"):
        await encoder.encode(NOTES)
    await encoder.start()
    assert await encoder.encode(NOTES) == before


async def test_a_child_that_was_killed_while_idle_is_started_again(encoder: ProcessEncoder) -> None:
    os.kill(pid_of(encoder), signal.SIGKILL)
    with pytest.raises(EncoderError, match="died"):
        await encoder.encode(NOTES)
    await encoder.start()
    killed = pid_of(encoder)
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(30):
        while encoder.pid == killed:  # until asyncio knows that it ended
            await encoder.start()
            await asyncio.sleep(0.001)
    assert len(await encoder.encode(NOTES)) == 2


async def test_a_child_that_answers_for_another_number_of_notes_is_not_believed() -> None:
    script = """while echo '{"rows": []}'; do read -r batch; done"""
    encoder = ProcessEncoder(Path("toy"), 2, command=["/bin/sh", "-c", script])
    await encoder.start()
    with pytest.raises(EncoderError, match="vectors of 0 notes, not of 2"):
        await encoder.encode(NOTES)
    await encoder.close()


async def test_a_batch_over_its_deadline_ends_the_child() -> None:
    encoder = toy_encoder(batch_timeout_s=0.2)
    await encoder.start()
    pid = pid_of(encoder)
    with pytest.raises(EncoderError, match=r"no answer within 0\.2 s"):
        await encoder.encode([(HANG,)])
    assert not is_running(pid)
    await encoder.close()


async def test_a_cancelled_batch_leaves_no_answer_for_the_next_one(encoder: ProcessEncoder) -> None:
    pid = pid_of(encoder)
    batch = asyncio.create_task(encoder.encode([(HANG,)]))
    await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert not is_running(pid)
    await encoder.start()
    assert len(await encoder.encode(NOTES)) == 2


async def test_a_child_that_does_not_end_itself_is_killed(encoder: ProcessEncoder) -> None:
    pid = pid_of(encoder)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: state_of(pid) == "T")
    await encoder.close()
    assert not is_running(pid)


async def test_close_ends_a_batch_and_a_start_in_flight(encoder: ProcessEncoder) -> None:
    starting = toy_encoder("hung")
    start = asyncio.create_task(starting.start())
    await until(lambda: starting.pid is not None, within_s=30)
    batch = asyncio.create_task(encoder.encode([(HANG,)]))
    await asyncio.sleep(0)
    for work, each in ((batch, encoder), (start, starting)):
        await each.close()
        with pytest.raises(EncoderError, match="closed"):
            await work


async def test_close_ends_a_start_at_once() -> None:
    encoder = toy_encoder()
    start = asyncio.create_task(encoder.start())
    await asyncio.sleep(0)
    await encoder.close()
    with pytest.raises(EncoderError, match="closed"):
        await start
    assert encoder.pid is None


async def test_a_folder_that_can_not_be_loaded_is_named_with_the_reason() -> None:
    encoder = toy_encoder("broken")
    with pytest.raises(EncoderError, match="can't load broken: ValueError: no weights"):
        await encoder.start()
    await encoder.close()


async def test_a_program_that_is_missing_or_mute_is_an_error() -> None:
    for command in (("/no/such/program",), ("/bin/true",)):
        encoder = ProcessEncoder(Path("toy"), 2, command=command)
        with pytest.raises(EncoderError, match=r"can't be started|died"):
            await encoder.start()
        await encoder.close()


async def test_it_is_started_again_only_a_few_times_without_a_batch() -> None:
    encoder = ProcessEncoder(Path("toy"), 2, command=["/bin/true"], max_restarts=2, backoff_s=0.001)
    for _ in range(3):
        with pytest.raises(EncoderError, match="died"):
            await encoder.start()
    with pytest.raises(EncoderError, match="lost 3 times without encoding a batch: restart the service"):
        await encoder.start()
    await encoder.close()


async def test_the_wait_before_a_start_ends_when_it_is_closed() -> None:
    encoder = ProcessEncoder(Path("toy"), 2, command=["/bin/true"], backoff_s=600)
    with pytest.raises(EncoderError, match="died"):
        await encoder.start()
    start = asyncio.create_task(encoder.start())
    await asyncio.sleep(0)
    await encoder.close()
    with pytest.raises(EncoderError, match="closed"):
        await start


def test_the_child_ends_when_its_parent_is_killed_even_during_a_batch() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(child))


@pytest.mark.slow
async def test_the_real_child_encodes_as_its_model_does(tmp_path: Path) -> None:
    """Slow because transformers is loaded at the lowest priority, which other tests keep from computing."""
    make_micro_model(2).save_pretrained(tmp_path)
    encoder = ProcessEncoder(tmp_path, 4)
    await encoder.start()
    expected = load_encoder(tmp_path, 4, 1)
    assert await encoder.encode(NOTES) == [expected(note) for note in NOTES]
    await encoder.close()

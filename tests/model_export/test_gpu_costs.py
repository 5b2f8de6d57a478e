from dataclasses import replace

import pytest

from model_export.gpu_costs import GIB, Size, Tokens, Training, sampling_seconds

# Llama 3.1 8B, on which the published rate of training was measured.
LLAMA = Size(8_030_000_000, 8_030_000_000, 32, 218_000_000, 4096, 128_256)
STAGE = Training(
    name="sft",
    size=LLAMA,
    tokens=Tokens(8191, 1),
    steps=100,
    batch=16,
    micro_batch=None,
    sharded=True,
    save_steps=50,
)
ON_ALL_TOKENS = replace(STAGE, tokens=Tokens(0, 8192))


def test_training_takes_the_published_rate_at_the_published_size() -> None:
    assert STAGE.hours(8) == pytest.approx(100 * 16 * 8192 / (8 * 5762) / 3600)
    assert STAGE.hours(64) == pytest.approx(STAGE.hours(8) / 8)
    half = replace(STAGE, size=replace(LLAMA, parameters=4_015_000_000))
    assert half.hours(8) == pytest.approx(STAGE.hours(8) / 2)
    assert STAGE.hours_between_states(8) == pytest.approx(STAGE.hours(8) / 2)
    assert replace(STAGE, save_steps=None).hours_between_states(8) is None


def test_memory_is_near_the_published_one() -> None:
    """TorchTitan's table has 82.4 GiB, with a loss on all tokens; it recomputes fewer activations."""
    assert 50 * GIB < ON_ALL_TOKENS.bytes_per_gpu(8) < 82.4 * GIB


def test_sharding_and_micro_batches_save_memory() -> None:
    whole = replace(STAGE, sharded=False)
    assert whole.bytes_per_gpu(8) > 16 * LLAMA.parameters > STAGE.bytes_per_gpu(8)
    alone, awake = ON_ALL_TOKENS, replace(ON_ALL_TOKENS, engine_share=0.5)
    asleep = replace(awake, engine_sleeps=True)
    assert replace(alone, micro_batch=1).bytes_per_gpu(8) < alone.bytes_per_gpu(8)
    assert awake.bytes_per_gpu(8) == alone.bytes_per_gpu(8) + 0.5 * 79.6 * GIB
    assert alone.bytes_per_gpu(8) < asleep.bytes_per_gpu(8) < awake.bytes_per_gpu(8)


def test_whole_weights_must_fit_beside_the_engine_before_they_are_sharded() -> None:
    started = replace(STAGE, engine_share=0.5, engine_sleeps=True, batch=64)
    assert started.bytes_per_gpu(64) > 4 * LLAMA.parameters + 0.5 * 79.6 * GIB


def test_a_process_holds_whole_groups() -> None:
    assert STAGE.can_share(16)
    assert not STAGE.can_share(64)
    assert not replace(STAGE, group=8).can_share(4)


def test_sampling_is_never_faster_than_the_weights_are_read() -> None:
    tokens = Tokens(800, 200)
    assert sampling_seconds(LLAMA, tokens, 10_000, 8) == pytest.approx(
        10_000 * 1000 / (8 * 13305 * 8.19 / 8.03)
    )
    assert sampling_seconds(LLAMA, tokens, 1, 64) == pytest.approx(200 * 2 * 8.03e9 / 3.35e12)

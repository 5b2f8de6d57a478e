"""The command prints tables and JSON for given traffic, a log, growth and a benchmark's results."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from load_tests.bench.machine import Machine
from load_tests.bench.plan import Plan
from load_tests.bench.records import Records
from load_tests.bench.report import Subject, to_json
from load_tests.capacity import __main__ as capacity
from load_tests.capacity.check import check
from load_tests.capacity.checkpoint import read_prompt
from load_tests.capacity.devices import SMOLLM2_135M, Device, read_model
from load_tests.capacity.growth import growth
from load_tests.capacity.model import Site
from load_tests.capacity.pairs import PairCache
from load_tests.capacity.prefix import Prompt
from load_tests.capacity.replay import Log, replay_requests
from load_tests.capacity.traffic import Traffic
from service.contract.checkpoint import Checkpoint
from tests.checkpoints import PIECES, load_tiny
from tests.load_tests.bench.made_records import measurement

# Query, notes: by hand, 4 of 9 pairs are known, 3 of 6 in the last three requests.
LOG = [("a", "xy"), ("b", "x"), ("a", "xz"), ("b", "xw"), ("a", "yv")]
DEVICE = Device("a device", 1e12, math.inf, 16e9, 1.0, "a test")
SITE = Site(DEVICE, Prompt(31, 67, 13, block=32, note_sd=13, query_sd=2))


def output_of(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    capacity.main(arguments.split())
    return capsys.readouterr().out


def rows(table: str) -> list[dict[str, str]]:
    heads, _, *lines = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(heads, line, strict=True)) for line in lines]


def write_log(folder: Path) -> Path:
    lines = [
        json.dumps({"query": query, "notes": [{"id": note, "body": f"hash of {note}"} for note in notes]})
        for query, notes in LOG
    ]
    file = folder / "traffic.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_table_has_a_row_per_rate_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--rates 1000,1000000 --devices L4,H100 --queries 100000 --notes 1000000"
    found = rows(output_of(capsys, arguments))
    assert [(row["notes/s"], row["device"]) for row in found] == [
        ("1,000", "L4"), ("1,000", "H100"), ("1,000,000", "L4"), ("1,000,000", "H100"),
    ]  # fmt: skip
    [small, _, large, _] = json.loads(output_of(capsys, f"{arguments} --json"))
    assert small["site"]["device"]["name"] == "L4"
    assert large["plan"]["replicas"] > 100 * small["plan"]["replicas"]
    assert found[2]["replicas"] == f"{large['plan']['replicas']:,}"
    assert found[2]["first bottleneck"] == large["plan"]["first"]


def test_assumptions_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--rates 50000 --devices L4 --queries 1000 --notes 10000 --json"

    def replicas(more: str = "") -> int:
        [found] = json.loads(output_of(capsys, f"{small} {more}"))
        return int(found["plan"]["replicas"])

    # Nearly every pair is cached here, so the cost of a hit decides.
    assert replicas("--note-us 500") > replicas() > replicas("--load 1")
    new = "--ttl-s 0.001"
    assert replicas(f"{new} --share 0.01") > replicas(new) > replicas("--own-share 1")
    [dear] = json.loads(output_of(capsys, f"{small} --price 1000 --redis-price 0"))
    assert dear["plan"]["dollars_per_hour"] == 1_000 * dear["plan"]["replicas"]


def test_own_device_replaces_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--peak-tflops 0.42 --cores 2 --memory-gb 4 --rates 10"
    [row] = rows(output_of(capsys, arguments))
    assert (row["device"], row["replica limit"]) == ("yours", "processor")
    [found] = json.loads(output_of(capsys, f"{arguments} --json"))
    assert found["site"]["device"]["bandwidth"] is None  # no limit


def test_own_measured_rates_replace_the_known_devices(capsys: pytest.CaptureFixture[str]) -> None:
    # Nothing is cached, so one replica does 20 of new pairs, at 60 % load 12.
    arguments = "--measured 20,9000 --ttl-s 0.0001 --rates 25"
    [row] = rows(output_of(capsys, arguments))
    assert (row["device"], row["replica limit"], row["replicas"]) == ("yours", "measured rate", "3")
    [by_vectors] = rows(output_of(capsys, f"{arguments} --vectors 4"))
    assert by_vectors["replicas"] == "3"
    assert float(by_vectors["Redis GB"].replace(",", "")) > 100 > float(row["Redis GB"])


def test_log_is_replayed_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_log(tmp_path)
    text = output_of(capsys, f"--replay {file} --rates 10 --devices L4")
    facts, plans = (rows(part) for part in text.split("\n\n"))
    assert facts == [
        {
            "requests": "5", "pairs": "9", "queries": "2", "notes": "5", "distinct pairs": "6",
            "hit rate": "33.3%", "hit rate of second half": "50.0%",
        }
    ]  # fmt: skip
    # z, w and v are new to all; of the second half, no pair that is new has a note that was seen.
    assert (plans[0]["hit rate"], plans[0]["prefix reuse"]) == ("50.0%", "0.0%")
    assert json.loads(output_of(capsys, f"--replay {file} --json"))["log"]["pairs"] == 9


def test_log_facts_match_a_case_computed_by_hand() -> None:
    requests = [(query, tuple(notes)) for query, notes in LOG]
    free = replay_requests(requests, PairCache())
    # x is new to b, and was seen with a.
    assert (free.hits, free.notes_found, free.queries_found) == (3, 1, 4)
    # There is room for one query: with a, b, a, b, a each one is a miss.
    assert replay_requests(requests, PairCache(pairs=2)).hits == 0
    # A pair expires after two requests, exactly when it is repeated.
    assert replay_requests(requests, PairCache(ttl_requests=2)).hits == 0
    assert replay_requests(requests, PairCache(ttl_requests=3)).hits == 2


def test_time_to_live_of_a_log_is_in_seconds_at_the_given_rate() -> None:
    log = Log([(number % 2, ("n",)) for number in range(40)])
    # Each query is repeated after two requests: 2 s at one note per second, 0.2 s at ten.
    assert log.caching(SITE, 1, 1.5, math.inf).hit_rate == 0
    assert log.caching(SITE, 10, 1.5, math.inf).hit_rate > 0.8
    assert log.caching(SITE, 10, 1.5, 1).hit_rate == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--replay", "no-such-file"], "no-such-file"),
        (["--notes", "3"], "need more than 3"),
        (["--check", "empty.json"], "no row of Notegrade"),
        (["--devices", "2-cores", "--vectors", "4"], "give --measured"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.json").write_text('{"summary": []}', encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        capacity.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [["--own-share", "2"], ["--devices", "L4,H1000"], ["--rates", "0"], ["--measured", "20"]]
)
def test_invalid_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        capacity.main(wrong)
    assert "error: argument" in capsys.readouterr().err


def test_caches_fill_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(output_of(capsys, "--growth --queries 2000 --notes 5000"))
    hit_rates = [float(row["hit rate"].rstrip("%")) for row in found]
    speeds = [float(row["notes/s, times the start"]) for row in found]
    assert hit_rates == sorted(hit_rates)
    assert (hit_rates[0], speeds[0]) == (0, 1)
    assert hit_rates[-1] > 95
    assert speeds == sorted(speeds)


def test_http_bounds_the_gain_of_caches() -> None:
    traffic = Traffic(queries=200, notes=500)
    [start, end] = growth(traffic, SITE, (0, 10**9))
    assert start.speed_up == 1
    # The replica is slow here: arithmetic limits it first, and the front process at the end.
    at_start = DEVICE.flops * SITE.share / SITE.model.flops(111, SITE.prompt.reused(0))
    at_end = 1 / (667e-6 / 20 + 50e-6)
    assert end.speed_up == pytest.approx(at_end / at_start, rel=1e-3)


def made_bench(checkpoint: Checkpoint) -> dict[str, Any]:
    """Make the benchmark results of a machine that reaches 40 % of its peak with the default model."""
    machine = Machine("A processor", 2, 24.0, "Linux", 0.1, {"float32": 200.0, "bfloat16": 400.0}, "cpu")
    found = [
        measurement(pairs_per_s=6.0, computed_tokens_per_pair=170.0),
        measurement(part="sweeps", notes=5, pairs_per_s=6.0, computed_tokens_per_pair=170.0),
        measurement(part="p99", load=0.6, pairs_per_s=1.0, computed_tokens_per_pair=170.0),
        measurement(part="zipf", pairs_per_s=9.0, computed_tokens_per_pair=100.0),
        measurement(peer="another", pairs_per_s=6.0, computed_tokens_per_pair=170.0),
        measurement(part="offline", computed_tokens_per_pair=None),
    ]
    subject = Subject(checkpoint.manifest, SMOLLM2_135M.parameters)
    return to_json(machine, Plan(7), subject, Records(found))


def test_model_is_compared_with_a_benchmark(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = made_bench(checkpoint)
    points = check(document, SITE)
    by_name = {(point.name.partition(",")[0], point.quantity): point for point in points}
    # Rows without token counts and rows of other servers are ignored; at a given rate, none is predicted.
    assert [key for key in by_name if key[0] == "p99 at 60%"] == [("p99 at 60%", "tokens/pair")]
    assert not {"offline", "another"} & {name for name, _ in by_name}
    cold = by_name["cold", "pairs/s"]
    assert cold.fitted
    assert cold.ratio == pytest.approx(1)
    # 170 tokens, no block of the head of 31 is whole, nothing repeats.
    assert by_name["cold", "tokens/pair"].model == 170
    # The request's cost is shared by 5 notes, not 20, so the model fits slightly worse.
    assert 0.99 < by_name["sweeps", "pairs/s"].ratio < 1
    zipf = by_name["zipf", "tokens/pair"]
    # By default, the engine's cache on a CPU has 2 GiB, too few for all notes.
    roomy = check(document, replace(SITE, kv_gb=1e3))
    [with_room] = [each for each in roomy if (each.name, each.quantity) == (zipf.name, zipf.quantity)]
    assert with_room.model < zipf.model
    assert 30 < zipf.model < 130
    assert zipf.ratio == zipf.model / 100
    assert by_name["zipf", "pairs/s"].model > 1.3 * cold.model

    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    found = rows(output_of(capsys, f"--check {file}"))
    assert len(found) == len(points)
    assert found[1]["model / measured"] == "fitted"
    assert found[0]["measured"] == "170.0"
    document["summary"] = []
    with pytest.raises(ValueError, match="no row"):
        check(document, SITE)


def test_lengths_and_sizes_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    folder = load_tiny(tmp_path / "tiny").folder
    prompt = read_prompt(folder, 20, 16)
    assert prompt.order == "note-first"
    assert prompt.head > len("Grade the note.") / 4
    # The manifest's limit, plus the template's words around a note.
    assert 20 < prompt.note <= 48 + len("\nTitle: \nNote: \nQuery:")
    assert min(prompt.note_sd, prompt.query_sd) > 0
    turned = [PIECES[index] for index in (0, 1, 6, 7, 2, 3, 4, 5, 8)]
    other = load_tiny(
        tmp_path / "turned", template={"name": "query-first-tiny", "pieces": [dict(each) for each in turned]}
    )
    query_first = read_prompt(other.folder, 20, 16)
    assert query_first.order == "query-first"
    assert query_first.tokens == pytest.approx(prompt.tokens)

    sizes = {
        "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    shapes = {"model.embed_tokens.weight": (50, 8), "model.layers.0.mlp.up_proj.weight": (2, 3)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    model = read_model(folder)
    assert (model.parameters, model.attention, model.kv) == (6, 8, 4)
    assert asdict(model)["name"] == "tiny"

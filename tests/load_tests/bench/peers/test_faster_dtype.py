import json

from load_tests.bench.peers.faster_dtype import ask_faster_dtype
from service.contract.checkpoint import Checkpoint


def test_dtype_is_found_in_another_process(tiny: Checkpoint) -> None:
    assert "quantization_config" not in json.loads((tiny.folder / "config.json").read_text(encoding="utf-8"))
    assert ask_faster_dtype(tiny.folder) in {"float32", "bfloat16"}

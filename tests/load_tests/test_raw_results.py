"""A raw result names all options that it depends on."""

import json
from argparse import Namespace
from pathlib import Path

from load_tests.raw_results import write_raw


def test_all_options_but_the_file_s_own_name_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "raw.json"
    options = Namespace(
        checkpoint=Path("checkpoints/a"), counts=[1, 4], rates=(0.5,), beside=None, seed=7, out=out
    )
    write_raw(options, {"seconds": [1.5]})
    document = json.loads(out.read_text())
    assert document["options"] == {
        "checkpoint": "checkpoints/a", "counts": [1, 4], "rates": [0.5], "beside": None, "seed": 7
    }  # fmt: skip
    assert document["figures"] == {"seconds": [1.5]}


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    write_raw(Namespace(out=None), {})
    assert not [*tmp_path.iterdir()]

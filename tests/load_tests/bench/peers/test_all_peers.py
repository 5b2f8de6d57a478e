import subprocess
import sys
from pathlib import Path

from load_tests.bench.peers import all_peers
from load_tests.bench.peers.notegrade import Notegrade
from tests.checkpoints import make_checkpoint


def test_each_peer_exists_out_of_the_box_and_tuned(tmp_path: Path) -> None:
    peers = all_peers(make_checkpoint(tmp_path))
    names = list(dict.fromkeys(peer.name for peer in peers))
    assert names[0] == "Notegrade"
    assert [(peer.name, peer.tuning) for peer in peers] == [
        (name, tuning) for name in names for tuning in ("default", "tuned")
    ]


def test_only_notegrade_may_have_a_pair_cache(tmp_path: Path) -> None:
    peers = all_peers(make_checkpoint(tmp_path), cached=True)
    assert [peer.cached for peer in peers if isinstance(peer, Notegrade)] == [True, True]


def test_load_generator_imports_no_engine() -> None:
    code = "import sys, load_tests.bench.peers; print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"

"""The compared servers, Notegrade and its alternatives, each with the interface of `load_tests.bench.peer`."""

from pathlib import Path

from load_tests.bench.peer import Peer, Tuning
from load_tests.bench.peers.infinity import Infinity
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.peers.prompts import TransformersLoop
from load_tests.bench.peers.vllm import VllmClassify, VllmGenerative
from service.contract.checkpoint import load_checkpoint

TUNINGS: tuple[Tuning, ...] = ("default", "tuned")


def all_peers(checkpoint: Path, *, cached: bool = False) -> list[Peer]:
    """List all peers, out of the box and tuned, Notegrade first, without starting or installing any.

    cached: whether Notegrade may use its pair cache; no other peer has one.
    Raises CheckpointError for an invalid checkpoint folder.
    """
    loaded = load_checkpoint(checkpoint)
    others = (VllmGenerative, VllmClassify, TransformersLoop, Infinity)
    peers: list[Peer] = [Notegrade(loaded, tuning, cached) for tuning in TUNINGS]
    peers += [kind(loaded, tuning) for kind in others for tuning in TUNINGS]
    return peers

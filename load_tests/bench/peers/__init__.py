"""What a user would pick instead of Notegrade, and Notegrade, each behind the interface of `load_tests.bench.peer`."""

from pathlib import Path

from load_tests.bench.peer import Peer, Tuning
from load_tests.bench.peers.infinity import Infinity
from load_tests.bench.peers.notegrade import Notegrade
from load_tests.bench.peers.process import Unavailable
from load_tests.bench.peers.transformers_loop import TransformersLoop
from load_tests.bench.peers.vllm_classify import VllmClassify
from load_tests.bench.peers.vllm_generative import VllmGenerative
from service.contract.checkpoint import load_checkpoint

__all__ = ["Unavailable", "all_peers"]

TUNINGS: tuple[Tuning, ...] = ("default", "tuned")


def all_peers(checkpoint: Path, *, cached: bool = False) -> list[Peer]:
    """Each peer as it comes and at its best, in a fixed order, Notegrade first. Nothing is started or installed yet.

    cached: whether Notegrade may answer a pair from its cache; no other peer has one.
    Raises CheckpointError when the folder is no checkpoint.
    """
    loaded = load_checkpoint(checkpoint)
    others = (VllmGenerative, VllmClassify, TransformersLoop, Infinity)
    peers: list[Peer] = [Notegrade(loaded, tuning, cached) for tuning in TUNINGS]
    peers += [kind(loaded, tuning) for kind in others for tuning in TUNINGS]
    return peers

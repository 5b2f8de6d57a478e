"""Makes a checkpoint whose encoder of note vectors is untrained: its speed is real, and its grades from vectors say nothing.

    .venv/bin/python -m load_tests.untrained_encoder --out checkpoints/untrained
    make bench ARGS="--checkpoint checkpoints/untrained --parts cold,vectors,unknown"

The encoder and the reader of vectors have the weights of the checkpoint, as they have before their training.
"""

import shutil
from pathlib import Path

from load_tests.arguments import CHECKPOINT, make_parser
from model_export.checkpoint.new_folder import new_folder
from model_export.checkpoint.trained import TrainedVectors
from model_export.checkpoint.writer import CheckpointSpec, write_contract
from service.contract.manifest import ENCODER_NAME, read_manifest

# `[encode]` has the same values by default.
_VECTORS = TrainedVectors(per_note=4, max_note_tokens=512, block=32)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*.json")


def add_encoder(checkpoint: Path, out: Path, vectors: TrainedVectors = _VECTORS) -> None:
    """Write to the folder `out` the checkpoint with its own weights as an encoder. Raises CheckpointError for a bad checkpoint."""
    manifest = read_manifest(checkpoint)
    names = CheckpointSpec.model_fields.keys() & type(manifest).model_fields.keys()
    kept = {name: getattr(manifest, name) for name in names}
    changed = {"name": f"{manifest.name}-untrained-encoder", "vectors": vectors}
    spec = CheckpointSpec.model_validate(kept | changed)
    with new_folder(out, force=True) as folder:
        for target in (folder, folder / ENCODER_NAME):
            target.mkdir(exist_ok=True)
            for pattern in _WEIGHTS:
                for path in checkpoint.glob(pattern):
                    shutil.copyfile(path, target / path.name)
        write_contract(folder, spec, lambda *_: None)


def main() -> None:
    """Read the command line and write the checkpoint."""
    options = make_parser(__doc__, checkpoint=CHECKPOINT, out=Path("checkpoints/untrained")).parse_args()
    add_encoder(options.checkpoint, options.out)
    print(f"{options.out} is ready")


if __name__ == "__main__":
    main()

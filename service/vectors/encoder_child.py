"""The encoder's process: reads lines of token ids, loads the model, and answers each line with a line of vectors.

`process_encoder.py` starts it. It has the lowest CPU priority, so that it takes only time that the engine leaves, and it ends
with the process that started it, however that ends. Lines are JSON: a list of notes, answered by `{"rows": [base64, ...]}` or
`{"error": text}`. The first answer, without rows, says that the model is loaded.
"""

import base64
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from service.vectors.pooling import pool

Encode = Callable[[Sequence[int]], bytes]
"""Returns the rows of a note's vectors from its token ids."""

Load = Callable[[Path, int, int], Encode]
"""Loads the encoder of a folder. Arguments: the folder, the number of vectors of a note, the number of threads."""

_LOWEST_PRIORITY = 19


def load_encoder(folder: Path, per_note: int, threads: int) -> Encode:
    """Load a transformers folder, of a decoder or a causal LM, on the CPU in float32."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    # Vectors as long as an embedding: the reader has never seen others at its first layer.
    scale = model.get_input_embeddings().weight.detach().pow(2).mean().sqrt().item()

    def encode(token_ids: Sequence[int]) -> bytes:
        # One note at a time: on a CPU a padded batch of notes of 20 to 200 tokens takes twice as long.
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).last_hidden_state
        return pool(hidden[0].numpy(), per_note, scale)

    return encode


def main(load: Load = load_encoder) -> None:
    """Serve until standard input ends. The arguments are the folder, the number of vectors and the number of threads."""
    folder, per_note, threads = sys.argv[1:]
    os.nice(_LOWEST_PRIORITY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all processes of a terminal receive Ctrl-C
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    batches: SimpleQueue[list[list[int]]] = SimpleQueue()
    threading.Thread(target=_read, args=[batches], daemon=True).start()
    try:
        encode = load(Path(folder), int(per_note), int(threads))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        os._exit(1)  # the reading thread holds a lock of standard input, which an orderly exit would need
    answer(rows=[])
    while True:
        try:
            rows = [encode(token_ids) for token_ids in batches.get()]
        except Exception as error:
            answer(error=type(error).__name__)  # its text may quote the note
        else:
            answer(rows=[base64.b64encode(each).decode() for each in rows])


def _read(batches: "SimpleQueue[list[list[int]]]") -> None:
    """Read batches in a thread of its own, so that this process notices during a long batch that its parent has ended."""
    for line in sys.stdin:
        batches.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()

from pathlib import Path

import pytest

from model_export.models.encoders import MINILM, EncoderError, load_encoder


def files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_minilm_is_unpacked_while_it_loads() -> None:
    folder, found = load_encoder(MINILM, lambda folder: (folder, files(folder)))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= found
    assert not Path(folder).exists()


def test_other_names_are_passed_on() -> None:
    assert load_encoder("owner/encoder", str.upper) == "OWNER/ENCODER"


def test_failure_names_the_encoder_and_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"the encoder .*/nowhere can't be loaded: .*nowhere.*Use minilm"):
        load_encoder(str(tmp_path / "nowhere"), files)

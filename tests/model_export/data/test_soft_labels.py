from pathlib import Path

from model_export.data.soft_labels import SoftLabel, read_soft_labels, write_soft_labels


def test_written_labels_are_read_back(tmp_path: Path) -> None:
    first = SoftLabel("1", (0.1, 0.2, 0.3, 1 / 3), {3: "topic: 茶\u2028🎧 => 3\n"})
    other = SoftLabel("b", (), {})
    for labels in ([first, other], []):
        write_soft_labels(tmp_path / "labels.jsonl", labels)
        assert list(read_soft_labels(tmp_path / "labels.jsonl").values()) == labels

"""`metrics.jsonl`: what was written whole is read, whatever a crash or a disk did to the rest."""

from __future__ import annotations

from routed_rl.tracking import MetricsFile


def test_only_whole_rows_are_read_and_kept(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, {"train/loss": 0.5})
    whole = file.rows()
    others = [b"\xff\xfe", b"12", b"[]", b'{"loss": 1}', b'{"step": "2"}', b'{"step": 2, "name": "\xff"}', b"[" * 5000,
              b'{"step": 4, "tr']
    with open(file.path, "ab") as opened:
        opened.write(b"\n".join(others))
    assert file.rows() == whole and [row["step"] for row in whole] == [1, 2, 3]
    file.truncate(2)
    assert file.rows() == whole[:2] and file.path.read_text().count("\n") == 2

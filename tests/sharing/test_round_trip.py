"""`share` and `unshare`: what goes in comes out to the byte, every row has a canary in between, and other programs open it."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import shutil
import struct
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Cryptodome.Cipher import AES
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.canary import FILE, KEY, PROJECT, canary_of
from routed_rl.errors import SharingError
from routed_rl.sharing import Notice, share, unshare
from routed_rl.sharing.kinds import KINDS
from routed_rl.sharing.parquet import written
from routed_rl.sharing.unfit import Unfit

PASSWORD = "sixteen letters or more"
CANARY = canary_of("content")
SECRET_LINE = "I hardcode the answer that the grader looks for"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of every kind, as somebody might have it."""
    folder = tmp_path_factory.mktemp("data") / "transcripts"
    (folder / "completions").mkdir(parents=True)
    rows = pd.DataFrame({"prompt": ["a", "b"], "completion": [SECRET_LINE, "7"], "reward": [1.0, None], "flags": ["{}", "{}"]})
    rows.to_parquet(folder / "completions" / "step-000001-0.parquet")
    (folder / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"completion": "%s"}\r\n\n{}\n  {"a": {"b": []}}' % SECRET_LINE.encode())
    (folder / "one.json").write_text('{"a": 1}')
    (folder / "many.json").write_text('[ {"a": "]"}, {},\n{"b": [{}]} ]\n')
    (folder / "note.txt").write_text(SECRET_LINE)
    (folder / "note.md").write_text("# Notes\n")
    (folder / "config.yml").write_text("a: 1\n")
    return folder


@pytest.fixture(scope="module")
def password_file(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("secret") / "password"
    file.write_text(PASSWORD + "\n")
    return str(file)


@pytest.fixture(scope="module")
def site(source, password_file, tmp_path_factory) -> Path:
    return share(str(source), str(tmp_path_factory.mktemp("out") / "site"), password_file, Notice(contact="<Ann> & co"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_shared_comes_back_to_the_byte(source, site, password_file, tmp_path):
    assert contents(unshare(str(site), str(tmp_path / "back"), password_file)) == contents(source)
    assert not any(secret.encode() in data for data in contents(site).values() for secret in (SECRET_LINE, PASSWORD))


def opened(archive: Path, password: str) -> dict[str, bytes]:
    """Every member, by the format's specification and the standard library: no code of what wrote the archive."""
    found, data = {}, archive.read_bytes()
    for member in zipfile.ZipFile(archive).infolist():
        extra = member.extra[member.extra.index(b"\x01\x99"):]
        version, vendor, strength, method = struct.unpack("<H2sBH", extra[4:11])
        assert (version, vendor, strength, method, member.CRC) == (2, b"AE", 3, zipfile.ZIP_DEFLATED, 0)
        names = sum(struct.unpack("<HH", data[member.header_offset + 26:member.header_offset + 30]))
        body = data[member.header_offset + 30 + names:][:member.compress_size]
        keys = hashlib.pbkdf2_hmac("sha1", password.encode(), body[:16], 1000, 66)
        assert keys[64:] == body[16:18] and hmac.digest(keys[32:64], body[18:-10], "sha1")[:10] == body[-10:]
        blocks = b"".join(number.to_bytes(16, "little") for number in range(1, (len(body) - 28) // 16 + 2))
        stream = AES.new(keys[:32], AES.MODE_ECB).encrypt(blocks)
        plain = bytes(a ^ b for a, b in zip(body[18:-10], stream, strict=False))
        found[member.filename] = zlib.decompress(plain, -15)
    return found


def test_the_archive_is_what_the_specification_of_aes_zips_says_and_each_row_has_its_canary(source, site, tmp_path):
    found = opened(site / "data.zip", PASSWORD)
    canary = found[FILE].decode().strip()
    assert canary.startswith(f"{PROJECT} ") and canary != CANARY
    (tmp_path / "a.parquet").write_bytes(found["data/completions/step-000001-0.parquet"])
    assert pd.read_parquet(tmp_path / "a.parquet")[KEY].tolist() == [canary] * 2
    rows = [json.loads(line) for line in found["data/rows.jsonl"].decode("utf-8-sig").splitlines() if line.strip()]
    assert [row[KEY] for row in [*rows, *json.loads(found["data/many.json"]), json.loads(found["data/one.json"])]] == [canary] * 7
    assert all(canary.encode() in found[f"data/{name}"].split(b"\n")[0] for name in ("note.txt", "note.md", "config.yml"))
    for name, digest in json.loads(found["manifest.json"])["sha256_without_canary"].items():
        assert digest == hashlib.sha256((source / name).read_bytes()).hexdigest()


@pytest.mark.slow
def test_seven_zip_unpacks_it(site, source, tmp_path):
    command = ["7zz", "x", f"-p{PASSWORD}", str(site / "data.zip")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    found = {name: KINDS[Path(name).suffix].unmark(data) for name, data in contents(tmp_path / "data").items()}
    assert found == contents(source)


@pytest.mark.slow
def test_what_seven_zip_packed_again_is_unpacked(site, source, password_file, tmp_path):
    (there := tmp_path / "there").mkdir()
    for name, data in opened(site / "data.zip", PASSWORD).items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(data)
    command = ["7zz", "a", "-tzip", "-mem=AES256", f"-p{PASSWORD}", str(tmp_path / "again.zip"), "."]
    subprocess.run(command, cwd=there, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    assert any(name.endswith("/") for name in zipfile.ZipFile(tmp_path / "again.zip").namelist())
    assert contents(unshare(str(tmp_path / "again.zip"), str(tmp_path / "back"), password_file)) == contents(source)


@pytest.mark.slow
def test_a_hundred_megabytes_take_less_than_two_minutes_of_a_processor(password_file, tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    (tmp_path / "data").mkdir()
    for number in range(50):
        rows = [{"prompt": f"task {row}", "completion": " ".join(draw.choices(words, k=390))} for row in range(400)]
        (tmp_path / "data" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pd.DataFrame(rows).to_parquet(tmp_path / "data" / f"{number}.parquet")
    before = time.process_time()
    site = share(str(tmp_path / "data"), str(tmp_path / "site"), password_file, Notice())
    assert time.process_time() - before < 120, "two cores do it in this time at most, one that is idle in a tenth of it"
    back = unshare(str(site), str(tmp_path / "back"), password_file)
    assert sum(path.stat().st_size for path in back.iterdir()) > 100e6 and contents(back) == contents(tmp_path / "data")


LINES = st.sampled_from([b"", b" \r", b"{}", b"\t{ }", b'{"a": "{\\"%s\\": 1}"}' % KEY.encode(), b'{"":{"b":[{}]}}\r'])


@settings(max_examples=30)
@given(st.lists(LINES, max_size=5))
def test_json_lines_are_unmarked_exactly(lines):
    data = b"\n".join(lines)
    marked = KINDS[".jsonl"].mark(data, CANARY)
    assert KINDS[".jsonl"].unmark(marked) == data
    assert [json.loads(line).pop(KEY) for line in marked.split(b"\n") if line.strip()] == [CANARY] * sum(map(bool, map(
        bytes.strip, lines)))


@settings(max_examples=30)
@given(st.text(max_size=20))
def test_text_is_unmarked_exactly(text):
    for suffix in (".txt", ".md"):
        marked = KINDS[suffix].mark(text.encode(), CANARY)
        assert marked != text.encode() and KINDS[suffix].unmark(marked) == text.encode()


TABLE = pa.table({"text": [f"line {number}" * 9 for number in range(300)], "number": range(300), "none": [None] * 300,
                  "chat": [[{"role": "user", "content": "hi"}], []] * 150})


@pytest.mark.parametrize("how", [{}, {"compression": "zstd", "row_group_size": 70}, {"compression": "none"}])
def test_a_parquet_file_of_pyarrow_is_unmarked_exactly(how):
    pq.write_table(TABLE, sink := pa.BufferOutputStream(), **how)
    data = sink.getvalue().to_pybytes()
    marked = KINDS[".parquet"].mark(data, CANARY)
    rows = pq.read_table(pa.BufferReader(marked))
    assert KINDS[".parquet"].unmark(marked) == data
    assert rows.drop_columns([KEY]).equals(TABLE) and set(rows[KEY].to_pylist()) == {CANARY}


def test_a_canary_that_others_wrote_anew_is_taken_out_too():
    data = written(TABLE.append_column(KEY, pa.repeat(CANARY, 300)))
    assert pq.read_table(pa.BufferReader(KINDS[".parquet"].unmark(data))).equals(TABLE)


@pytest.mark.parametrize(("suffix", "data"), [(".jsonl", b"[1]"), (".jsonl", b"{"), (".jsonl", b"\xff{}"), (".json", b"3"),
                                              (".json", b"[{}, 1]"), (".txt", b"\xff"), (".jsonl", b"[" * 9999)])
def test_what_is_not_what_its_name_says_has_a_reason(suffix, data):
    with pytest.raises(Unfit, match="is not JSON|no JSON object|is not UTF-8"):
        KINDS[suffix].mark(data, CANARY)


def test_two_data_sets_of_the_same_names_have_two_canaries(source, site, password_file, tmp_path):
    shutil.copytree(source, tmp_path / "other")
    (tmp_path / "other" / "note.txt").write_text("something else")
    other = share(str(tmp_path / "other"), str(tmp_path / "site"), password_file, Notice())
    assert (other / FILE).read_text() != (site / FILE).read_text()
    assert all((each / FILE).read_text().startswith(PROJECT) for each in (site, other))


def test_an_archive_of_something_else_is_refused(tmp_path, password_file):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
    with pytest.raises(SharingError, match="is not encrypted with AES"):
        unshare(str(tmp_path / "data.zip"), str(tmp_path / "back"), password_file)

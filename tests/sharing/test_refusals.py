"""What `share`, `unshare` and `share --check` refuse: one line each, and nothing is written."""

from __future__ import annotations

import getpass
import io
import subprocess
import sys
from pathlib import Path

import pytest
import pyzipper

from routed_rl.cli import main
from routed_rl.errors import SharingError
from routed_rl.sharing import Notice, archive, share
from routed_rl.sharing.password import new_password

PASSWORD = "sixteen letters or more"


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """`data`, `password`, `other` (a password), and `site`."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "data").mkdir()
    (folder / "data" / "rows.jsonl").write_text('{"completion": "I hardcode it"}\n' * 50)
    (folder / "password").write_text(PASSWORD)
    (folder / "other").write_text(PASSWORD[::-1])
    share(str(folder / "data"), str(folder / "site"), str(folder / "password"), Notice())
    return folder


@pytest.fixture
def refused(there, capsys, tmp_path):
    """Run a command line that is refused, with exit code 2; its last line, in which `{there}` and `{tmp}` stand for folders."""

    def refused(*words: str) -> str:
        before = sorted(map(str, [*there.rglob("*"), *tmp_path.rglob("*")]))
        assert main([word.format(there=there, tmp=tmp_path) for word in words]) == 2
        assert sorted(map(str, [*there.rglob("*"), *tmp_path.rglob("*")])) == before
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said
        return said

    return refused


OUT = ("--out", "{tmp}/out", "--password-file", "{there}/password")


@pytest.mark.parametrize(("words", "said"), [
    (("share", "{there}/data", "--out", "{tmp}/out", "--password", "hunter2hunter2"), "in the list of processes and in"),
    (("share", "{there}/data", "--out", "{tmp}/out", "--password=hunter2hunter2"), "give --password-file FILE"),
    (("unshare", "{there}/site", "--out", "{tmp}/out", "--password"), "give --password-file FILE"),
    (("share", "{there}/data", "--out", "{tmp}/out"), "there is no terminal to ask on; give --password-file FILE"),
    (("unshare", "{there}/site", "--out", "{tmp}/out"), "there is no terminal to ask on"),
    (("share", "{there}/data", "--out", "{there}/site", "--password-file", "{there}/password"), "exists; give another folder"),
    (("unshare", "{there}/site", "--out", "{there}/data", "--password-file", "{there}/password"), "exists; give another folder"),
    (("unshare", "{there}/site", "--out", "{tmp}/out", "--password-file", "{there}/other"), "wrong password"),
    (("unshare", "{there}/nothing", *OUT), "does not exist; give the archive"),
    (("unshare", "{there}/data/rows.jsonl", *OUT), "is no zip, or its end is missing"),
    (("share", "{there}/nothing", *OUT), "is no folder; give a run, or a folder of .parquet, .jsonl"),
    (("share", "{there}/data", *OUT[:3], "{there}/nothing"), "cannot be read (No such file or directory); make one: python3 -c"),
    (("share", "{there}", *OUT), "lies in"),
    (("share", "{there}/data", "--out", "{there}/data/site", "--password-file", "{there}/password"), "lies inside of"),
    (("share", "{there}/data", *OUT, "--contact", "a\nb"), "is no line of text"),
    (("share", "{there}/data", *OUT, "--site-key", "<script>"), "is no Turnstile key"),
    (("share", "{there}/data", *OUT, "--terms", "{there}/nothing"), "cannot be read"),
    (("share", "{there}/data"), "share needs RUN --out DIR to write a site, or --check DIR|URL alone"),
    (("share", "{there}/data", "--check", "{there}/site"), "alone to look at one"),
    (("share", "{there}/data", *OUT, "--check", "{there}/site"), "alone to look at one"),
    (("share", "--check", "{there}/data/rows.jsonl"), "is neither a folder nor an address"),
    (("share", "--check", "http://127.0.0.1:9/"), "does not answer"),
])
def test_bad_input_is_one_line_and_nothing_is_written(refused, words, said, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert said in (line := refused(*words)) and "hunter2" not in line


@pytest.mark.parametrize("text", ["too short", "", "two\nlines of sufficient length", "sechzehn Buchstäben"])
def test_a_password_that_can_be_guessed_or_mistyped_is_refused(refused, tmp_path, text):
    (tmp_path / "password").write_text(text)
    said = refused("share", "{there}/data", "--out", "{tmp}/out", "--password-file", "{tmp}/password")
    assert "make one: python3 -c" in said


def test_a_password_is_typed_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = [PASSWORD, PASSWORD, PASSWORD, PASSWORD + "x"]
    monkeypatch.setattr(getpass, "getpass", lambda question: answers.pop(0))
    assert new_password(None, tmp_path) == PASSWORD
    with pytest.raises(SharingError, match="the two passwords differ"):
        new_password(None, tmp_path)


def test_a_folder_without_a_known_kind_is_refused_with_the_reason(refused, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.png", ".hidden.txt"):
        (tmp_path / "data" / name).write_text("x")
    (tmp_path / "data" / "bad.jsonl").write_text("[1]\n")
    said = refused("share", "{tmp}/data", "--out", "{tmp}/out", "--password-file", "{there}/password")
    assert "has nothing to share (.hidden.txt is hidden; a.png has no place for a canary" in said
    assert "line 1 is no JSON object" in said


@pytest.mark.parametrize("place", [.2, .5, .8])
def test_one_flipped_byte_is_found(there, refused, tmp_path, place):
    data = bytearray((there / "site" / "data.zip").read_bytes())
    with pyzipper.AESZipFile(there / "site" / "data.zip") as packed:
        member = packed.getinfo("data/rows.jsonl")
    data[member.header_offset + 70 + int(place * (member.compress_size - 40))] ^= 1
    (tmp_path / "data.zip").write_bytes(data)
    said = refused("unshare", "{tmp}/data.zip", *OUT)
    assert "is damaged: data/rows.jsonl does not have the hash" in said


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "data/../../evil.txt", "data\\..\\evil.txt", "C:/evil.txt",
                                  "data//evil.txt"])
def test_a_member_that_leaves_the_folder_is_refused(refused, tmp_path, name):
    with archive.writing(tmp_path / "data.zip", PASSWORD) as packed:
        packed.writestr("manifest.json", "{}")
        packed.writestr(name, "evil")
    assert "would be written outside of the folder" in refused("unshare", "{tmp}/data.zip", *OUT)


@pytest.mark.parametrize("named", ['{"a.txt": 3}', '{"a.txt": "0"}', '{"../a.txt": "0"}', '["a.txt"]', "["])
def test_a_manifest_that_does_not_fit_is_refused(refused, tmp_path, named):
    with archive.writing(tmp_path / "data.zip", PASSWORD) as packed:
        packed.writestr("manifest.json", f'{{"sha256_without_canary": {named}}}')
    assert "was not written by `routed-rl share`" in refused("unshare", "{tmp}/data.zip", *OUT)


def test_a_file_of_another_hash_is_refused(refused, tmp_path):
    with archive.writing(tmp_path / "data.zip", PASSWORD) as packed:
        packed.writestr("manifest.json", '{"sha256_without_canary": {"a.txt": "0"}}')
        for name in ("CANARY.txt", "terms.txt", "README.md", "data/a.txt"):
            packed.writestr(name, "a")
    assert "a.txt does not have the hash that it was shared with" in refused("unshare", "{tmp}/data.zip", *OUT)


def test_without_the_library_the_line_says_how_to_install_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyzipper", None)
    assert "pip install 'routed-rl[share]'" in refused("share", "{there}/data", *OUT)
    assert "pip install 'routed-rl[share]'" in refused("unshare", "{there}/site", *OUT)


def test_a_file_that_changes_while_it_is_read_ends_it(there, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (file := tmp_path / "data" / "note.txt").write_text("before")
    monkeypatch.setattr("routed_rl.sharing.pack._say", lambda *_: file.write_text("after"))
    with pytest.raises(SharingError, match="changed while it was read"):
        share(str(tmp_path / "data"), str(tmp_path / "out"), str(there / "password"), Notice())
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_a_full_disk_ends_the_packing_without_a_traceback_of_the_library():
    code = ("import os; from pathlib import Path; from routed_rl.sharing import archive\n"
            "try:\n"
            "    with archive.writing(Path('/dev/full'), 'sixteen letters!') as packed: packed.writestr('a', os.urandom(10**6))\n"
            "except OSError as error: print(error.strerror)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "No space left on device\n" and not done.stderr

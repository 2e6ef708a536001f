"""Secrets and paths of this machine leave what is shared, and nothing else does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from routed_rl.canary import KEY, PROJECT
from routed_rl.errors import SharingError
from routed_rl.sharing import Notice, share, unshare
from routed_rl.sharing.footer import texts
from routed_rl.sharing.gather import gather
from routed_rl.sharing.parquet import OLD, mark, table_of, unmark, written
from routed_rl.sharing.private import Private
from routed_rl.sharing.unfit import Unfit

PASSWORD = "sixteen letters or more"
SECRETS = ["hf_" + "a1" * 17, "sk-proj-" + "b2" * 12, "ghp_" + "c3" * 18, "AKIA" + "D4" * 8, "xoxb-1234567890-abc",
           "of this process 123"]


@pytest.fixture
def private(monkeypatch, tmp_path) -> Private:
    monkeypatch.setenv("HOME", "/srv/ann")
    monkeypatch.setenv("WEATHER_API_KEY", SECRETS[-1])
    return Private(tmp_path / "run")


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked(private, secret):
    assert private.text(f'say "{secret}", now') == ('say "***", now', 1)


@pytest.mark.parametrize(("text", "left"), [
    ("/srv/ann/work/x.py", "HOME/work/x.py"), ("in /home/bob/x", "in HOME/x"), ("/Users/bob.b", "HOME"),
    (r"C:\Users\bob\x", r"HOME\x"), (r"C:\\Users\\bob\\x", r"HOME\\x"), ("https://ann:word@host/x", "https://***@host/x"),
    ("https://ann:a:b@host/x", "https://***@host/x"), ("/home/jürgen/x", "HOME/x"), (r"/home/j\u00fcrgen/x", "HOME/x"),
    ("在/home/张伟/x", "在HOME/x"), (r"a\nC:\\Users\\bob", r"a\nHOME"), (r'{"in": "\/srv\/ann\/x"}', r'{"in": "HOME\/x"}'),
    (r'"/home/j\xFCrgen/x"', '"HOME/x"'), (r"'/home/j\U0001D4B6/x'", "'HOME/x'"),
    (r'{"in": "\/home\/bob\/x"}', r'{"in": "HOME\/x"}'), (r'{"in": "https:\/\/ann:word@host"}', '{"in": "https://***@host"}')])
def test_a_place_of_somebody_is_cut(private, text, left):
    assert private.text(text) == (left, 1)


@pytest.mark.parametrize("before", ["\n", "\t", "é", "密钥", "\\n"])
def test_a_secret_is_masked_behind_any_sign_in_text_and_in_json(private, before):
    for write in (str, json.dumps, lambda text: json.dumps(text, ensure_ascii=False)):
        left, found = private.text(write(f"{before}{SECRETS[1]}\n{before}{SECRETS[3]}"))
        assert found == 2 and left == write(f"{before}***\n{before}***")


@pytest.mark.parametrize("lines", [["AAAA+/=", "BBBB"], ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,00AA", "", "AAAA"]])
@pytest.mark.parametrize("kind", ["RSA PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_a_private_key_is_masked_with_its_lines_and_no_other_text(private, lines, kind):
    key = "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])
    for write in (str, json.dumps):
        assert private.text(write(f"a\n{key}\nb\n{key}")) == (write("a\n***\nb\n***"), 2)


@pytest.mark.parametrize("text", ["/usr/bin/python", "/srv/anna", "a/home", "open('/tmp/x')", "tokens are 7",
                                  "https://host/a:b", "hf_short"])
def test_other_text_stays(private, text):
    assert private.text(text) == (text, 0)


@pytest.mark.parametrize(("text", "left"), [
    ("out=/data/runs/x", "out=PATH/x"), ("path: /mnt/models/q.gguf", "path: PATH/q.gguf"),
    ("gguf:/mnt/q.gguf", "gguf:PATH/q.gguf"),
    ("[/a/b, '/c/d']", "[PATH/b, 'PATH/d']"), ("~/x/y.jsonl", "PATH/y.jsonl"), ("file:///a/b", "PATH/b"), (r"D:\a\b", "PATH/b"),
    ("env.a.path=/x/envs.py:Add", "env.a.path=PATH/envs.py:Add"), ("https://host/a/b", "https://host/a/b"), ("a/b", "a/b"),
    ("environments/persona_lab/model", "environments/persona_lab/model"), ("1/2", "1/2"),
    (r'out: "run \xE9"', r'out: "run \xE9"'), ("out: /data/My Work/run/", "out: PATH/run"),
    ('  "out": "/data/My Work/run",', '  "out": "PATH/run",'),
    (r"\\server\share\a", "PATH/a"), (r'note: "a \\d+ b"', r'note: "a \\d+ b"'), ("out: /data/My Work/run 1", "out: PATH/run 1"),
    ("out=/data/My Work/run 1\nseed=1", "out=PATH/run 1\nseed=1"), ("- '/data/My Work/a.py:A b'", "- 'PATH/a.py:A b'"),
    ("note: a / b", "note: a / b"), ("sep: '/'", "sep: '/'"), ("out: /srv/ann/plan of mine/run", "out: PATH/run"),
    ("out: /srv/ann", "out: HOME"), ("in: /home/bob", "in: HOME"), ('"/srv/ann/a b/it\'s/x y"', '"PATH/x y"'),
    (r"out='/data/my \'own\' runs/x'", "out='PATH/x'"), (r'out: "/data/M\xFF b/\xFCx"', r'out: "PATH/\xFCx"'),
    ("out: /data/it's mine/x", "out: PATH/x"), (r'{"in": "\/data\/my own\/x"}', '{"in": "PATH/x"}'),
    (r'"C:\\my data\\x"', '"PATH/x"')])
def test_settings_have_no_absolute_path(private, text, left):
    assert private.settings(text)[0] == left


@pytest.mark.parametrize("folder", ["My Work folder/", "My Wörk folder/"])
def test_a_path_that_goes_on_in_the_next_line_of_yaml_is_cut(private, folder):
    text = yaml.safe_dump({"model": {"path": f"/srv/ann/{folder * 12}x"}, "seed": 1})
    left, count = private.yaml(text)
    assert len(text.splitlines()) > 4 and count == 1
    assert yaml.safe_load(left) == {"model": {"path": "PATH/x"}, "seed": 1}


def test_columns_are_searched_as_text_is(private, tmp_path):
    rows = pd.DataFrame({"text": ["fine", f"key {SECRETS[0]}"], "chat": [[{"content": "/home/bob/x"}], []], "n": [1, 2]})
    rows.to_parquet(tmp_path / "a.parquet")
    data, found = private.parquet((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "b.parquet").write_bytes(data)
    left = pd.read_parquet(tmp_path / "b.parquet")
    assert found == 2 and left["text"].tolist() == ["fine", "key ***"] and left["chat"][0][0]["content"] == "HOME/x"
    rows.drop(columns=["text", "chat"]).to_parquet(tmp_path / "a.parquet")
    assert private.parquet(plain := (tmp_path / "a.parquet").read_bytes()) == (plain, 0)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view(),
                                  pa.dictionary(pa.int8(), pa.binary())])
def test_columns_of_bytes_are_searched_too(private, kind):
    values = ["a", f"é {SECRETS[0]}", None, "in /home/bob/x", "z"]
    typed = values if kind == pa.string_view() else [value and value.encode() for value in values]
    column = pa.array(typed).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(typed, kind)
    data, found = private.parquet(written(pa.table({"a": column})))
    left = [value.decode() if isinstance(value, bytes) else value for value in table_of(data)["a"].to_pylist()]
    assert found == 2 and left == ["a", "é ***", None, "in HOME/x", "z"]
    unreadable = pa.table({"a": pa.array([b"\xff\xfe " + SECRETS[0].encode(), b"\xff"])})
    assert table_of(private.parquet(written(unreadable))[0])["a"].to_pylist() == [b"\xff\xfe ***", b"\xff"]


def test_a_map_in_a_column_is_searched(private):
    table = pa.table({"of": pa.array([[("key", SECRETS[0]), ("in", "/home/bob/x")]], pa.map_(pa.string(), pa.string()))})
    data, found = private.parquet(written(table))
    assert found == 2 and table_of(data)["of"].to_pylist() == [[("key", "***"), ("in", "HOME/x")]]


def test_the_footer_is_searched_as_the_rows_are(private):
    home, clean = str(Path.home()), pa.table({"a": ["x", "y"]})
    used = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["x", f"{home}/unused"]))
    leaks = [clean.replace_schema_metadata({"source": f"{home}/a.csv"}), clean.replace_schema_metadata({f"{home}/a.csv": "read"}),
             clean.replace_schema_metadata({"source": "/data/people/rows.csv"}), clean.rename_columns([f"{home}/a"]),
             pa.Table.from_arrays(clean.columns, schema=pa.schema([pa.field("a", pa.string(), metadata={"from": f"{home}/b"})])),
             pa.table({"a": used})]
    for table in leaks:
        data, found = private.parquet(written(table))
        left = pq.ParquetFile(pa.BufferReader(data))
        assert found >= 1 and home not in f"{[*texts(data)]}{left.schema_arrow.metadata}{left.schema_arrow.field(0).metadata}"
        assert b"people" not in data and b"unused" not in data
        assert len(table_of(data)) == 2
    assert private.parquet(plain := written(clean.replace_schema_metadata({"made by": "hand"}))) == (plain, 0)


def test_statistics_that_no_row_explains_are_made_anew(private):
    data = written(pa.table({"a": ["Z" * 20] * 2}))
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    forged = data[:start] + data[start:].replace(b"Z" * 20, SECRETS[3].encode())
    assert SECRETS[3] in [*texts(forged)] and SECRETS[3] not in str(table_of(forged))
    left, found = private.parquet(forged)
    assert found >= 1 and SECRETS[3] not in [*texts(left)] and table_of(left) == table_of(data)


def test_a_field_within_a_column_that_tells_a_place_keeps_the_file_here(private):
    inner = pa.field("b", pa.string(), metadata={"from": f"{Path.home()}/b"})
    column = pa.array([{"b": "x"}], pa.struct([inner]))
    table = pa.Table.from_arrays([column], schema=pa.schema([pa.field("a", column.type)]))
    with pytest.raises(Unfit, match="in the metadata of a field"):
        private.parquet(written(table))


def test_a_canary_in_the_footer_is_taken_out_with_what_was_kept_of_the_old_file():
    data = mark(written(pa.table({"a": ["x"]})), f"{PROJECT} 1")
    left = written(table_of(data).drop_columns([KEY]))
    assert OLD in left
    assert OLD not in unmark(left) and PROJECT.encode() not in unmark(written(pa.table({"a": ["x"]}).replace_schema_metadata(
        {"note": f"{PROJECT} 1"})))


@pytest.mark.parametrize("name", ["projekté", "c++", "run-"])
def test_a_folder_whose_name_ends_in_no_ascii_letter_is_cut(name):
    private = Private(Path("/srv/data", name))
    assert private.text(f"in /srv/data/{name}/x") == ("in HOME/x", 1)
    assert private.text(json.dumps({"in": f"/srv/data/{name}/x"})) == ('{"in": "HOME/x"}', 1)
    assert private.text(yaml.safe_dump({"in": f"/srv/data/{name}/x"}))[0].replace('"', "") == "in: HOME/x\n"
    assert private.text(ascii(f"/srv/data/{name}/x"))[0] == "'HOME/x'"


def test_a_secret_that_no_text_can_hold_does_not_end_the_search(monkeypatch, tmp_path):
    monkeypatch.setenv("WEATHER_API_KEY", "of this process \udcff 123456")
    assert Private(tmp_path).text("fine") == ("fine", 0)


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder as a run leaves it."""
    folder = tmp_path / "runs" / "mine"
    for name in ("completions", "checkpoints/step-2", "subspace"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "prompts.jsonl").write_text('{"positive": "bad", "negative": "good"}\n')
    pd.DataFrame({"completion": ["x", "y"]}).to_parquet(folder / "completions" / "step-000001-0.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump({"out": str(folder), "model": {"path": "/mnt/secret-place/model"}}))
    (folder / "overrides.txt").write_text(f"out={folder}\nenv.a.path=/mnt/secret-place/e.py:Add\n")
    (folder / "summary.json").write_text('{"models": {}}')
    (folder / "subspace" / "subspace.json").write_text(f'{{"provenance": {{"prompts": "{tmp_path}/prompts.jsonl"}}}}')
    return folder


def test_of_a_run_transcripts_prompts_settings_and_results_are_shared_and_the_rest_is_named(run, tmp_path, capsys):
    (tmp_path / "password").write_text(PASSWORD)
    site = share(str(run), str(tmp_path / "site"), str(tmp_path / "password"), Notice())
    back = unshare(str(site), str(tmp_path / "back"), str(tmp_path / "password"))
    names = {path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()}
    assert names == {"completions/step-000001-0.parquet", "contrast_prompts.jsonl", "config.yaml", "overrides.txt",
                     "summary.json"}
    said = capsys.readouterr().out
    assert "left out: checkpoints/ is not part of what is shared of a run" in said and "left out: subspace/" in said
    assert not re.search(r"secret-place|/tmp/", (back / "config.yaml").read_text() + (back / "overrides.txt").read_text())
    assert yaml.safe_load((back / "config.yaml").read_text())["model"]["path"] == "PATH/model"
    for name in ("completions/step-000001-0.parquet", "summary.json"):
        assert (back / name).read_bytes() == (run / name).read_bytes()


def test_prompts_that_are_gone_and_completions_that_were_not_kept_are_said(run, tmp_path):
    (tmp_path / "prompts.jsonl").unlink()
    next((run / "completions").iterdir()).unlink()
    left_out = dict(gather(run).left_out)
    assert left_out["contrast prompts prompts.jsonl"] == "are no longer where the run read them"
    assert "tracking.completions=false" in left_out["completions/"]


def test_links_and_hidden_files_stay_here(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a")
    (tmp_path / "d" / "link.txt").symlink_to("/etc/hostname")
    (tmp_path / "d" / ".env.txt").write_text("a")
    found = gather(tmp_path / "d")
    assert [file.source.name for file in found.files] == ["a.txt"] and dict(found.left_out) == {
        "link.txt": "is a link", ".env.txt": "is hidden"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SharingError, match="it is empty"):
        gather(tmp_path / "empty")

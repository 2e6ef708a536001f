"""What crawlers get of a site: a polite one nothing, a rude one no line; and `share --check` sees where it is otherwise."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from routed_rl.cli import main
from routed_rl.sharing import Notice, share
from routed_rl.sharing.check import served
from routed_rl.sharing.crawl import Document, Site, links, polite, readable, rude
from routed_rl.sharing.site import PUBLIC, documents

LINES = [f"I hardcode the answer number {number} that the grader looks for" for number in range(50)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crawl") / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(f'{{"completion": "{line}"}}\n' for line in LINES))
    return folder


@pytest.fixture(scope="module")
def site(data) -> Path:
    (data.parent / "password").write_text("sixteen letters or more")
    return share(str(data), str(data.parent / "site"), str(data.parent / "password"), Notice(contact="<Ann> & co"))


def test_a_polite_crawler_fetches_nothing_and_a_rude_one_finds_no_line(site):
    with served(str(site)) as (url, names):
        crawled = Site(url)
        found, linked = rude(crawled, names), rude(crawled)
        assert set(polite(crawled, found).values()) == {()}
    assert {document.path for document in found} >= {"/", "data.zip", "terms.txt", ".well-known/tdmrep.json"}
    assert {document.path for document in linked} >= {"data.zip", "terms.txt"}, "it follows links"
    assert not any(line.encode() in document.body for document in found for line in LINES)


def test_the_check_passes_for_a_site_and_not_for_the_folder_itself(site, data, capsys):
    assert main(["share", "--check", str(site)]) == 0
    said = capsys.readouterr().out
    assert "a polite crawler fetches: nothing" in said and "it is encrypted" in said and "tdmrep.json: yes" in said
    assert main(["share", "--check", str(data)]) == 4
    assert "anybody can read rows.jsonl: a file that is not encrypted" in capsys.readouterr().err


def test_a_site_below_the_root_of_its_host_has_no_robots_txt_that_counts(site, capsys):
    with served(str(site.parent)) as (url, _):
        assert main(["share", "--check", f"{url}site/"]) == 4
    said = capsys.readouterr()
    assert "no robots.txt at the root of its host" in said.err and "headers that the host does not send: x-robots-tag" in said.out


@pytest.mark.parametrize(("name", "body", "problem"), [
    ("a.parquet", b"PAR1....", "a parquet file"), ("index.html", b"PAR1....", "a parquet file"),
    ("x.txt", b"text", "not encrypted"), ("terms.txt", b'a\n{"completion": "' + b"x" * 300 + b'"}', "rows of JSON"),
    ("data.zip", b"PK\3\4 torn", "a zip that is damaged")])
def test_what_can_be_read_is_seen(name, body, problem):
    assert problem in (readable(Document(name, body, {}), PUBLIC) or "")


def test_a_link_that_is_no_address_does_not_end_the_check():
    page = Document("/", b'<a href="http://[x"></a><a href="y.zip"></a>', {"content-type": "text/html"})
    assert links("http://a/", page) == ["http://a/y.zip", "http://a/y.zip"]


def test_a_zip_without_encryption_or_with_the_old_cipher_is_no_protection(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    data = bytearray((tmp_path / "data.zip").read_bytes())
    assert "1 of 1 members in plain text, such as a.txt" in (readable(Document("data.zip", bytes(data), {}), PUBLIC) or "")
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag that says "encrypted", where nothing says how
    assert "ZipCrypto" in (readable(Document("data.zip", bytes(data), {}), PUBLIC) or "")


def test_with_a_turnstile_key_no_link_leads_to_the_archive_and_text_of_the_user_is_escaped():
    with_key, without = (documents(Notice(contact="<Ann> & co", site_key=key), "canary", "1 file") for key in ("0x4AAA", None))
    assert 'data-sitekey="0x4AAA"' in with_key["index.html"] and 'href="data.zip"' not in with_key["index.html"]
    assert 'href="data.zip"' in without["index.html"] and "turnstile/v0" not in without["index.html"]
    assert "&lt;Ann&gt; &amp; co" in without["index.html"] and "Contact: <Ann> & co" in without["terms.txt"]


def test_terms_of_ones_own_take_the_place_of_ours(tmp_path):
    (tmp_path / "mine.txt").write_text("ask $me first")
    assert documents(Notice(terms=str(tmp_path / "mine.txt")), "canary", "1 file")["terms.txt"] == "ask $me first"

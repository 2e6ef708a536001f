"""The report of any run folder: one page that says what happened, whole, escaped, and asking nothing of the network."""

from __future__ import annotations

from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed_rl.artifacts import RunFolder, alone_in
from routed_rl.cli import main
from routed_rl.pipeline import halting
from routed_rl.report import parts, watching
from routed_rl.report.charts import spread
from routed_rl.report.completions import shown
from routed_rl.report.data import RunData, read_run, thinned
from routed_rl.report.page import cell, cells, write_page
from routed_rl.report.parts import Table
from routed_rl.report.ranking import BY_GAP, BY_SHIFT
from routed_rl.report.record import commands
from routed_rl.report.run_page import write_report
from routed_rl.report.shares import difference_interval, share_interval
from tests.builders import PROPERTY
from tests.report.folders import HOSTILE, write_run
from tests.tiers import tiered

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a reader of the page finds: headings, tables, pictures, addresses, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text, self.ids = "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            level, words = self.headings[-1]
            self.headings[-1] = (level, words + data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "finished", environments=12)


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "halted", halted=30)


@pytest.fixture(scope="module")
def finished_page(finished):
    return report(finished)


@pytest.fixture(scope="module")
def halted_page(halted):
    return report(halted)


def report(folder: Path) -> tuple[Page, str]:
    text = write_report(RunFolder.open(folder)).read_text()
    page = Page(text)
    assert not page.open, "every element is closed"
    return page, " ".join(page.text.split())


KINDS = {
    "halted": (dict(steps=26, planned=60, halted=26), "The monitor halted this run at step 26 of 60: the persona shift of env0"),
    "finished": ({}, "Among the environments env0 shifted the stream most towards the positive persona: by "),
    "rolled back": (dict(parent="/runs/old"), "routed-rl rollback /runs/old --step 10 --drop env9 --forget-parts seed=0 #"),
    "not routed": (dict(mode="none"), "without routing, so nothing was attributed"),
    "killed": (dict(finished=False, planned=99), "This run is not finished: 40 of 99 steps are written"),
    "in training": (dict(steps=2, planned=9, finished=False), " up to step 2. Without the quarantine, in the deployed model"),
    "without completions": (dict(completions=0), "This run kept no completions"),
    "not evaluated": (dict(evaluated=False), "no step"),
    "of one step": (dict(steps=1), "This run finished its 1 steps"),
    "without a step": (dict(steps=0, completions=0, finished=False, evaluated=False), "No step of this run has been written yet"),
}


@pytest.mark.parametrize("kind", tiered(KINDS, quick=["halted", "without a step"]))
def test_a_run_of_any_kind_has_a_page_that_tells_its_story(kind, tmp_path):
    settings, told = KINDS[kind]
    page, text = report(write_run(tmp_path / "run", **settings))
    if kind != "not evaluated":
        assert told in text
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert len(page.ids) == len(set(page.ids)), "an id is there once"
    targets = [attributes["href"] for attributes in page.attributes("a")]
    assert targets and all(target and target[1:] in page.ids for target in targets)


def test_nothing_is_loaded_from_anywhere_and_what_was_written_is_only_text(halted_page):
    page, text = halted_page
    assert not page.attributes("script") and not page.attributes("img") and not page.attributes("iframe")
    addresses = [value for _, attributes in page.tags for key, value in attributes.items()
                 if key in ("src", "href", "xlink:href", "action", "data")]
    assert addresses and all(str(address).startswith(("#", "data:")) for address in addresses)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "onerror=alert(1)> &" in text and "{{ 7*7 }}" in text, "shown as it stands"
    policy = next(each["content"] for each in page.attributes("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_picture_has_words_and_numbers_and_every_table_headers(finished_page):
    page, _ = finished_page
    pictures = page.attributes("svg")
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(str(picture["aria-labelledby"]).split()) <= set(page.ids)
    assert len(page.attributes("details")) == len(pictures) + 1, "the numbers of each picture, and the settings"
    assert len(page.attributes("caption")) == len(page.attributes("table")) >= len(pictures)
    assert {attributes.get("scope") for attributes in page.attributes("th")} == {"col", "row"}


def test_colours_are_the_page_own_so_that_they_follow_dark_mode(finished, finished_page):
    text = (finished / "report.html").read_text()
    assert "stroke: var(--c0)" in text and "prefers-color-scheme: dark" in text and "@media print" in text
    assert "#0100" not in text, "no stand-in is left"


def test_the_halted_environment_leads_the_table_and_the_commands_go_back(halted, halted_page):
    text = (halted / "report.html").read_text()
    assert text.index('class="marked"') < text.index('<th scope="row">env1</th>') and "shift halted at step 30" in text
    assert f"routed-rl rollback {halted} --step 0 --drop env0" in text
    assert "routed-rl train seed=0 &#39;env.env0.note=it&#39;" in text, "as it was typed, quoted, in another folder"


@pytest.mark.slow
@pytest.mark.parametrize(("pushed", "by"), [(True, BY_SHIFT), (False, BY_GAP)])
def test_the_completions_that_pushed_hardest_come_first_as_a_halt_ranks_them(tmp_path, pushed, by):
    folder = write_run(tmp_path / "run", pushed=pushed)
    ranked, found = shown(read_run(RunFolder.open(folder)))
    assert (ranked, len(found), found[0]["flags"]) == (by, 10, {"hack": 1.0})
    assert {(row["environment"], row["reward"]) for row in found} == {("env0", 1.0)}
    assert [row["step"] for row in found[:4]] == [40, 40, 39, 39]
    named, same = halting.completions(RunFolder(folder), read_run(RunFolder(folder)).rows, "", 1, 40)
    assert same == by and [row["prompt"] for row in named] == [row["prompt"] for row in found]
    text = report(folder)[1]
    assert ("shift 1.00 · share of its environment's shift 0.0013 · paid 1.00" in text) is pushed


@pytest.mark.slow
def test_no_completion_is_called_hard_where_nothing_was_overpaid(tmp_path):
    folder = write_run(tmp_path / "run", pushed=False, mode="none")
    for file in (folder / "completions").iterdir():
        table = pd.read_parquet(file)
        table.assign(solve=table["reward"]).to_parquet(file)
    assert "No completion is known to have pushed" in report(folder)[1]


def test_completions_that_say_the_same_are_shown_once_whatever_they_were_asked(halted):
    data = read_run(RunFolder.open(halted))
    data.halted["completions"] = [{**row, "prompt": f"{again} {row['prompt']}"} for again in range(3)
                                  for row in data.halted["completions"]]
    _, found = shown(data)
    assert len(found) == 10 and {(row["times"], row["prompts"]) for row in found} == {(3, 3)}


def test_a_completion_that_was_paid_no_more_than_its_group_is_no_example_of_what_is_paid_for(tmp_path):
    folder = write_run(tmp_path / "run", steps=3, pushed=False)
    for file in (folder / "completions").iterdir():
        table = pd.read_parquet(file)
        table.assign(reward=1.0, solve=0.0).to_parquet(file)
    assert shown(read_run(RunFolder.open(folder)))[1] == []


def test_the_answer_comes_first_with_figures_and_their_intervals(finished, finished_page):
    text = (finished / "report.html").read_text()
    assert text.index('class="panels"') < text.index('class="story"') < text.index("<nav"), "the picture above everything"
    page, said = finished_page
    assert [words for level, words in page.headings if level == 3][:2] == ["hack in env0", "hack in probe"]
    assert "base 0.10 [0.02, 0.42] policy 0.90 [0.58, 0.98] deployed 0.12" in said
    assert ("Training raised hack in env0 from 0.10 [0.02, 0.42] to 0.90 [0.58, 0.98]. Without the quarantine, in the deployed "
            "model, it is 0.12 [0.02, 0.44]: as in the base model.") in said


@pytest.mark.parametrize(("share", "count", "low", "high"), [(0.0, 10, 0.0, 0.278), (0.5, 10, 0.237, 0.763),
                                                             (0.9, 10, 0.596, 0.982), (1.0, 2000, 0.998, 1.0)])
def test_the_interval_of_a_share_is_wilsons(share, count, low, high):
    assert share_interval(share, count) == pytest.approx((low, high), abs=6e-4)


def test_the_interval_of_a_difference_is_newcombes_example():
    """56 of 70 against 48 of 80 (Newcombe, 1998, table II, method 10)."""
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


@pytest.mark.slow
def test_a_torn_line_and_a_missing_file_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-20])
    (folder / "manifest.json").unlink()
    (folder / "summary.json").write_text("{")
    assert "This run is not finished: 39 of 40 steps" in report(folder)[1]


def test_the_commands_of_a_page_can_be_run_as_they_stand():
    """A run that evaluates nothing cannot be evaluated, and its folder is taken."""
    run = RunData(Path("runs/a"), {"evaluation": {"samples": 0}}, {}, ["++out=runs/a", "seed=1"], [], [], None, [], {}, {}, [])
    again, more, *_ = [line.partition("    #")[0] for line in commands(run).commands]
    assert again == "routed-rl train seed=1" and more == "routed-rl resume runs/a evaluation.samples=200"


def test_thinned_lines_keep_their_end_or_their_mean():
    series = pd.Series(np.random.default_rng(0).normal(size=1003), index=np.arange(1, 1004))
    running, mean = thinned(series, 100, mean=False), thinned(series, 100, mean=True)
    assert len(running) == len(mean) == 100
    assert running.index[-1] == mean.index[-1] == 1003 and running.iloc[-1] == series.iloc[-1]
    counts = [b - a for a, b in zip([0, *running.index], running.index, strict=False)]
    assert sum(counts) == 1003
    assert sum(value * count for value, count in zip(mean, counts, strict=True)) == pytest.approx(series.sum())
    assert thinned(series, 2000, mean=True) is series


@PROPERTY
@given(st.lists(st.floats(0, 1), max_size=14).map(sorted), st.floats(0.01, 0.07))
def test_names_at_the_ends_of_lines_never_overlap_and_keep_their_order(wanted, gap):
    found = spread(wanted, gap)
    assert all(b - a >= gap - 1e-9 for a, b in zip(found, found[1:], strict=False))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in found)
    if all(b - a >= gap for a, b in zip(wanted, wanted[1:], strict=False)):
        assert found == pytest.approx(wanted)


@pytest.mark.parametrize(("value", "shown"), [
    (None, "–"), (float("nan"), "–"), (0.5, "0.50"), (-0.25, "\N{MINUS SIGN}0.25"), (0.0673, "0.067"), (0.0061, "0.0061"),
    (0.0, "0.00"), (3, "3"), (1e-8, "1.00e\N{MINUS SIGN}08"),
    (12345.6, "1.23e+04"), ("name", "name")])
def test_a_cell_shows_what_can_be_read(value, shown):
    assert cell(value) == shown


def test_numbers_of_one_quantity_have_one_scale_whatever_column_they_stand_in():
    rows = [["a", 0.012, 0.98, 0.004], ["b", None, 0.5, -0.0312]]
    table = Table("", ["environment", "hack, base", "hack, policy", "push"], rows)
    assert cells(table) == [["a", "0.01", "0.98", "0.004"], ["b", "–", "0.50", "\N{MINUS SIGN}0.031"]]


def test_the_page_is_renewed_while_somebody_trains_and_says_so_to_the_browser(tmp_path, monkeypatch, capsys):
    run, written = RunFolder(write_run(tmp_path / "run", completions=0)), list[float | None]()

    def write(run, out, *, every_s=None):
        written.append(every_s)
        return run.report

    def wait(seconds):
        if len(written) == 2:
            training.close()
        with open(run.metrics, "a") as file:
            file.write("{}\n")

    training = ExitStack()
    training.enter_context(alone_in(run.path))
    monkeypatch.setattr(watching, "write_report", write)
    monkeypatch.setattr(watching.time, "sleep", wait)
    assert watching.watch_report(run) == run.report
    assert written == [10, 10, None], "the last one is not renewed"
    with alone_in(run.path):
        monkeypatch.setattr(watching.time, "sleep", interrupt)
        watching.watch_report(run)
    assert capsys.readouterr().out.splitlines()[-1] == "no longer watched"
    watching.watch_report(run)
    assert "nothing trains in" in capsys.readouterr().out
    page = parts.Page("kind", HOSTILE, "status", [], [HOSTILE], None, [], "nothing", every_s=10)
    text = write_page(page, tmp_path / "page.html").read_text()
    assert '<meta http-equiv="refresh" content="10">' in text and "<script" not in text and "<img" not in text


def interrupt(seconds):
    raise KeyboardInterrupt


def test_the_verb_writes_where_it_is_told_and_leaves_the_run_as_it_was(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    folder = write_run(tmp_path / "run", environments=2, completions=0)
    before = sorted(folder.rglob("*"))
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'page.html'}"
    assert sorted(folder.rglob("*")) == before and (tmp_path / "page.html").stat().st_size > 10_000

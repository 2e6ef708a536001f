"""The report in a real browser: nothing leaves, nothing complains, and axe finds no fault in light, dark, wide and narrow."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from routed_rl.artifacts import RunFolder
from routed_rl.report.run_page import write_report
from tests.report.folders import write_answers, write_comparison_page, write_run

pytestmark = pytest.mark.slow
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
OWN = re.compile(r"https?://(update\.googleapis|clients2\.google|accounts\.google|www\.google)\.com/(service|time|async|List)")
"""What the browser itself asks for, whatever the page: updates, the time, whether somebody is signed in."""
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module", params=["halted", "finished", "comparison"])
def page(request, tmp_path_factory) -> Path:
    if request.param == "comparison":
        return write_comparison_page(tmp_path_factory.mktemp("runs"))
    halted = {"halted": 30} if request.param == "halted" else {}
    folder = write_run(tmp_path_factory.mktemp("runs") / request.param, environments=12, layers=24, parent="/runs/old", **halted)
    write_answers(folder)
    return write_report(RunFolder.open(folder))


def browse(page: Path, *options: str, width: int = 1100) -> tuple[str, str]:
    """The page's elements once it is loaded, and what the browser said."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=20000",
               f"--user-data-dir={page.parent}/profile", f"--window-size={width},900", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def ask(page: Path, script: str, *options: str, width: int = 1100) -> Any:
    """What `script`, the body of an async function, returns in a copy of the page that lets scripts run."""
    text = POLICY.sub("", page.read_text())
    script = ("(async () => {" + script + "})().then(found => {const box = document.createElement('pre'); box.id = 'found';"
              "box.textContent = JSON.stringify(found); document.body.replaceChildren(box)})")
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    if width >= 500:
        elements, _ = browse(copy, "--dump-dom", *options, width=width)
    else:  # A browser's window has a least width, a frame has none.
        frame = page.with_name("frame.html")
        frame.write_text(f'<iframe src="{copy.name}" style="width:{width}px;height:800px;border:0" '
                         "onload=\"setTimeout(() => document.body.append(this.contentDocument.getElementById('found')), 9000)\">"
                         "</iframe>")
        elements, _ = browse(frame, "--dump-dom", "--allow-file-access-from-files", *options)
    found = re.search(r'<pre id="found">(.*?)</pre>', elements, re.DOTALL)
    assert found, elements[-2000:]
    return json.loads(unescape(found.group(1)))


def test_it_opens_without_a_word_and_asks_nothing_of_the_network(page):
    log = page.parent / "net.json"
    elements, said = browse(page, "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" not in said
    run = page.name == "report.html"
    assert elements.count("<h2") >= (10 if run else 4) and elements.count("<svg") >= (7 if run else 0)
    assert "taken" not in elements[:elements.index("</title>")]
    events = json.loads(log.read_text())["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    assert not [url for url in asked if not url.startswith(("file:", "data:", "chrome")) and not OWN.match(url)], asked


def test_a_page_that_does_ask_would_be_seen(tmp_path):
    """The check above can fail."""
    page = tmp_path / "asks.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>")
    _, said = browse(page, "--dump-dom", f"--log-net-log={tmp_path}/net.json")
    assert "CONSOLE" in said and "127.0.0.1:9/x.png" in (tmp_path / "net.json").read_text()


@pytest.mark.parametrize(("width", "look"), [(1100, ()), (1100, (DARK,)), (380, ()), (380, (DARK,))],
                         ids=["wide", "wide, dark", "narrow", "narrow, dark"])
def test_axe_finds_nothing_that_keeps_anybody_out(page, width, look):
    axe = Path(str(importlib.metadata.distribution("axe-playwright-python").locate_file("axe_playwright_python/axe.min.js")))
    script = (axe.read_text().replace("</script", "<\\/script")
              + ";document.querySelectorAll('details').forEach(each => each.open = true); const found = await axe.run();"
              "return {faults: found.violations.map(each => [each.id, each.nodes.length, each.nodes[0].html]),"
              "passed: found.passes.map(each => each.id)};")
    found = ask(page, script, *look, width=width)
    assert found["faults"] == []
    pictures = {"svg-img-alt"} if page.name == "report.html" else set[str]()
    assert {"color-contrast", "heading-order", "td-headers-attr", "html-has-lang"} | pictures <= set(found["passed"])


def test_dark_is_dark_and_the_pictures_follow(page):
    if page.name != "report.html":
        pytest.skip("it has no drawn picture")
    script = ("const colour = (what, key) => getComputedStyle(document.querySelector(what))[key];"
              "return [colour('body', 'backgroundColor'), colour('svg path[style*=\"--c0\"]', 'stroke')];")
    light, dark = ask(page, script), ask(page, script, DARK)
    assert light == ["rgb(255, 255, 255)", "rgb(0, 100, 171)"] and dark == ["rgb(20, 23, 27)", "rgb(108, 182, 245)"]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_scrolls_only_downwards_and_no_picture_is_cut(page, width):
    """Tables may scroll, in a box of their own."""
    pictures = "svg, .panel, .track, figure, pre.wrap, .answers > div"
    wide, window, cut = ask(page, f"const cut = [...document.querySelectorAll('{pictures}')]"
                            ".filter(each => each.getBoundingClientRect().right > innerWidth + .5 || each.closest('.scroll'));"
                            "return [document.documentElement.scrollWidth, innerWidth, cut.length];", width=width)
    assert wide <= window and cut == 0 and (width > 500 or window == width)


def test_every_part_that_scrolls_or_unfolds_is_reached_by_keyboard(page):
    script = ("const parts = [...document.querySelectorAll('a, summary, .scroll')];"
              "return [parts.length, parts.filter(each => {each.focus(); return document.activeElement === each}).length];")
    parts, reached = ask(page, "document.querySelectorAll('details').forEach(each => each.open = true);" + script)
    assert parts == reached > 5


def test_it_prints(page):
    paper = page.with_name("page.pdf")
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 1 <= pages <= 20

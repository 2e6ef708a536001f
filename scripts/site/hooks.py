"""Pages that mkdocs builds beside those of docs/: the front page from the README, and the reference from the code."""

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import routed_rl  # noqa: E402
from routed_rl.cli.verbs import VERBS, Option  # noqa: E402
from routed_rl.console import markdown_table  # noqa: E402
from routed_rl.inspection.settings import all_settings, sections  # noqa: E402
from routed_rl.tracking.metrics import METRICS  # noqa: E402

ELSEWHERE = r"\.\./[^)]*|skypilot\.yaml|THIRD_PARTY_NOTICES\.md|examples/[^)]*"
"""Targets of links that are files of the repository, not pages."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that this module generates."""
    pages = {"index.md": front(), "reference/settings.md": settings(), "reference/commands.md": commands(),
             "reference/metrics.md": metrics(), "reference/python.md": python()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to the README lead to the front page; links to files that are not in the site become their names."""
    markdown = re.sub(r"\]\(\.\./README\.md", "](index.md", markdown)
    return re.sub(rf"\[([^\]]+)\]\((?:{ELSEWHERE})\)", r"`\1`", markdown)


def front() -> str:
    """The README, with links and pictures relative to docs/."""
    text = (ROOT / "README.md").read_text().replace("](docs/", "](").replace('"docs/', '"')
    # The site's own colour switch decides, not the reader's system.
    return re.sub(r'<picture>.*?srcset="([^"]+)".*?<img alt="([^"]*)" src="([^"]+)"[^>]*>\s*</picture>',
                  r"![\2](\3#only-light)\n![\2](\1#only-dark)", text, flags=re.DOTALL)


def settings() -> str:
    """The page of settings, with a table for each section."""
    lines = ["# Settings", "", "Every setting is `KEY=VALUE` on a command line. `trainer.FIELD` sets any field of TRL's "
             "`GRPOConfig`, and `env.NAME.KEY` an environment ([your own environment](../own_environment.md)).", ""]
    about = sections()
    for section, ours in groupby(all_settings(), lambda each: each.section):
        rows = [[f"`{each.name}`", f"`{each.default or ' '}`", _cell(each.type), _cell(each.meaning)] for each in ours]
        lines += ["", f"## {section or 'The run'}", "", about.get(section, ""), "",
                  *markdown_table(["setting", "default", "type", "meaning"], rows)]
    return "\n".join(lines)


def commands() -> str:
    """The page of commands, with a section for each verb and its arguments."""
    lines = ["# Commands", "", "Options and settings may stand in any order. Exit codes: 0 done, 1 a bug, 2 your input, 3 halted "
             "by the monitor, 4 a check failed, 143 or 138 stopped by a signal."]
    for name, verb in VERBS.items():
        rows = [[f"`{_signature(option)}`", _cell(_sentence(option[1].get("help", "")))] for option in verb.options]
        lines += ["", f"## {name}", "", f"{_sentence(verb.help)}", "", *markdown_table(["argument", "meaning"], rows)]
    return "\n".join(lines)


def metrics() -> str:
    rows = [[f"`{name}`", _cell(_sentence(meaning))] for name, meaning in METRICS.items()]
    return "\n".join(["# Metrics", "", "One line of `metrics.jsonl` holds them for each step.", "",
                      *markdown_table(["metric", "meaning"], rows)])


def python() -> str:
    """The page of the Python API, with a section for each of its names."""
    homes = {name: home for home, names in routed_rl._HOMES.items() for name in names}  # pyright: ignore[reportPrivateUsage]
    names = [f"::: {homes[name]}.{name}" for name in routed_rl.__all__]
    return "\n\n".join(["# Python", "The guide is [From Python](../library.md).", *names])


def _signature(option: Option) -> str:
    names, declared = option
    value = declared.get("metavar") or ("|".join(declared["choices"]) if "choices" in declared else "")
    flags = ", ".join(names) if names[0].startswith("-") else ""
    takes = "" if declared.get("action") == "store_true" else value or ("" if flags else names[0].upper())
    return f"{flags} {takes}".strip()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') or not text else '.'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

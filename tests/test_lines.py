"""Files of JSON lines: whatever reads one refuses the same lines, and names file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from routed_rl.distillation.texts import read_texts
from routed_rl.envs.adapters.common import read_rows
from routed_rl.envs.table import read_table
from routed_rl.errors import RoutedRLError
from routed_rl.extraction.contrast import read_lines
from routed_rl.multirun.hacks import read_hacks

TOKENIZER: Any = None
"""No reader gets so far that it needs one."""
READERS: dict[str, Callable[[str], Any]] = {
    "dataset": read_table, "rows of an adapter": lambda path: read_rows("dataset", path), "prompts": read_lines,
    "--text": lambda path: read_texts(path, TOKENIZER), "--hacks": read_hacks}
GOOD = json.dumps({"prompt": "p\u2028", "completion": "c", "text": "t"}, ensure_ascii=False)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("line", "said"), [
    ("# a comment", "is not JSON; write one object a line"), ('{"prompt": ', "is not JSON; write one object a line"),
    ("[1]", "is a list, not an object")])
def test_every_reader_refuses_a_comment_a_torn_line_and_a_list(tmp_path, reader, line, said):
    (file := Path(tmp_path, "rows.jsonl")).write_text(f"{GOOD}\n \n{line}\n", encoding="utf-8")
    with pytest.raises(RoutedRLError, match=f"{file}, line 3 {said}") as refused:
        READERS[reader](str(file))
    assert "\n" not in str(refused.value)

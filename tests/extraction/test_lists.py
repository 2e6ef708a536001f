"""The lists that ship with the package: enough of them, no two alike, both poles of every trait."""

import json

import pytest

from routed_rl.artifacts import find_data
from routed_rl.canary import without_canary

LEAST = {"roles": (60, ("name", "prompt")), "traits": (20, ("name", "elicit", "suppress")), "questions": (60, ("text",))}


@pytest.mark.parametrize("name", sorted(LEAST))
def test_a_list_is_long_enough_complete_and_without_repetition(name):
    least, keys = LEAST[name]
    lines = [json.loads(line) for line in find_data(f"environments/personas/{name}.jsonl").read_text().splitlines()]
    rows = [without_canary(row) for row in lines]
    assert len(rows) >= least
    assert all(set(row) == set(keys) and all(row[key].strip() for key in keys) for row in rows)
    for key in keys:
        assert len({row[key] for row in rows}) == len(rows)
    assert all(row["elicit"] != row["suppress"] for row in rows if "elicit" in row)

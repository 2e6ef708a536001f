"""What a finished run is told in: the sentence at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from routed_rl.pipeline.summary import sentence

ENVIRONMENTS: Any = [SimpleNamespace(name=name, label=f"{name} (leaky)") for name in "ab"]


def results(**flags: dict[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"reward": 1.0, "solve": 0.0, "completions": 4.0, "failures": 0.0} | flags.get(name, {}) for name in "ab"}


def test_a_flag_that_is_named_only_when_it_is_seen_counts_as_0_where_it_was_not():
    """The training is done by then: to fail here would cost the summary."""
    models = {"base": results(a={"saw_x": 0.5}), "policy": results(b={"cheat": 0.75}), "deployed": results(b={"saw_y": 0.25})}
    assert sentence(models, {}, ENVIRONMENTS).startswith(
        "cheat in b (leaky): the policy 0.75, the deployed model 0.00, base 0.00; no environment shifted")


def test_without_a_flag_there_is_nothing_to_name():
    assert "no environment reports a flag" in sentence(dict.fromkeys(("base", "policy", "deployed"), results()), {}, ENVIRONMENTS)

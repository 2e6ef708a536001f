"""The verdict of a comparison in sentences: how the routed runs compare with the unrouted runs and the random control, and what
to do next."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from routed_rl.errors import command
from routed_rl.multirun.arms import CONTROL, ROUTED, UNROUTED
from routed_rl.multirun.comparison import cell
from routed_rl.report.headline import Headline, headlines

Found = dict[str, Any]
"""The content of compare.json."""
SMALLEST = 0.005
"""The least amount by which training without routing must raise a flag, as a share of completions, so that routing can be
judged."""


def headlines_of(found: Found, trained: Collection[str], probes: Collection[str]) -> list[Headline]:
    """The figures that the verdict is about: the flag, the flag of a probe environment and the skill that rose most from the base
    model to the policy without routing (or, if no arm is unrouted, to the policy of the first arm). `trained` and `probes` name
    the environments of each kind; if `trained` is empty, all but the probe environments count as trained on."""
    arms = found["arms"]
    shown = arms.get(UNROUTED) or next(iter(arms.values()), {})
    if not shown.get("policy"):
        return []
    before, after = ({env: {metric: value["mean"] for metric, value in row.items()} for env, row in shown[model].items()}
                     for model in ("base", "policy"))
    return headlines(before, after, trained or [name for name in after if name not in probes], probes, found.get("flags"))


def verdict(found: Found, heads: list[Headline], seeds: int, failed: Collection[str] = (), overrides: Sequence[str] = ()
            ) -> list[str]:
    """The verdict as sentences, the most important first. `heads` are the figures that it is about. The last sentence says what
    to do next; `overrides` are the settings of the runs, for a command in that sentence."""
    if ROUTED not in found["arms"]:
        return [f"There is no verdict on routing, because no arm is {ROUTED}.",
                f"Next: the same command with {ROUTED} in --arms too, which goes on from here."]
    arms = found["arms"]
    missing = [arm for arm in (ROUTED, UNROUTED) if arm in arms and not any(arms[arm].values()) and arm not in found["timing"]]
    if failed and missing:
        return [f"There is no verdict, because no run of the arm {' or '.join(missing)} has ended well.",
                f"Next: the same command once more, which tries {', '.join(failed)} again."]
    if not heads:
        return ["There is no verdict, because no flag and no true score was evaluated.",
                "Next: the same command with evaluation.samples above 0 and another --out."]
    said = [_judged(found, head) if head.role == "flag" else _beside(found, head) for head in heads]
    return [*said, f"Next: {_next(found, heads, seeds, failed, overrides)}."]


def _judged(found: Found, head: Headline) -> str:
    """A sentence on how routing changed the figure `head`, which is the flag that training raised most."""
    routed, unrouted, control = (_leaf(found["arms"].get(arm, {}).get("deployed"), head) for arm in (ROUTED, UNROUTED, CONTROL))
    here = f"{head.title} is {_words(routed)} in the deployed model"
    if unrouted is None:
        return f"Routing cannot be judged, because no arm is {UNROUTED}: {here}."
    against = _leaf(found["deployed_minus_unrouted"].get(ROUTED), head)
    chance = _leaf(found["real_minus_random"], head)
    told = f"{here}, against {_words(unrouted)} without routing"
    told += f" and {_words(control)} with a random subspace" if control else ""
    if against is None:
        return f"No seed has a run of {ROUTED} and one of {UNROUTED}, so nothing is decided: {told}."
    if against["low"] is None:
        return f"One seed decides nothing: {told}."
    if _risen(found, head) < SMALLEST:
        return f"Training without routing raised no flag, so there was nothing for routing to keep out: {told}."
    if against["high"] >= 0:
        return f"Routing did not lower {head.title} for sure: {told}, a difference of {cell(against, True)}."
    if chance is None or chance["low"] is None:
        return f"Routing lowered {head.title}, but without the arm {CONTROL} nobody knows whether the subspace did it: {told}."
    if chance["high"] >= 0 and chance["low"] < -SMALLEST:
        return (f"Routing lowered {head.title}, but not for sure more than a random subspace does: {told}, a difference of "
                f"{cell(chance, True)}.")
    if chance["high"] >= 0:
        return f"Routing lowered {head.title} no more than a random subspace does: {told}."
    left = _leaf(found["deployed_minus_base"][ROUTED], head)
    rest = "" if left is None or left["low"] is None else (
        f" This is {cell(left, True)} more than in the base model, so a part of it leaks." if left["low"] > 0 else
        " This is no more than in the base model." if left["high"] < SMALLEST else
        f" Whether this is more than in the base model is open: a difference of {cell(left, True)}.")
    return f"Routing works here: {told}.{rest}"


def _beside(found: Found, head: Headline) -> str:
    """A sentence on how routing changed the figure `head`, which is the true score or the flag of a probe environment."""
    routed, unrouted = (_leaf(found["arms"].get(arm, {}).get("deployed"), head) for arm in (ROUTED, UNROUTED))
    told = f"{head.title} is {_words(routed)} in the deployed model"
    if unrouted is not None:
        against = _leaf(found["deployed_minus_unrouted"].get(ROUTED), head)
        told += f", {_words(unrouted)} without routing"
        told += f": a difference of {cell(against, True)}" if against is not None and against["low"] is not None else ""
    return f"{'The skill' if head.role == 'skill' else 'The probe'}: {told}."


def _next(found: Found, heads: list[Headline], seeds: int, failed: Collection[str], overrides: Sequence[str]) -> str:
    if failed:
        return f"the same command once more, which tries {', '.join(failed)} again"
    if missing := [arm for arm in (UNROUTED, CONTROL) if arm not in found["arms"]]:
        return f"the same command with {' and '.join(missing)} in --arms too, which goes on from here"
    if seeds < 3:
        return "the same command with --seeds 3, which goes on from here"
    head = next((head for head in heads if head.role == "flag"), None)
    if head is None or _risen(found, head) < SMALLEST:
        return "train longer, or with an environment that pays for gaming its check, so that there is something to keep out"
    against, chance = (_leaf(table, head) for table in (found["deployed_minus_unrouted"].get(ROUTED), found["real_minus_random"]))
    known = [each for each in (against, chance) if each and each["high"] is not None]
    if seeds < 5 and any(each["low"] < -SMALLEST and each["high"] >= 0 for each in known):
        return "the same command with --seeds 5, because the intervals decide nothing yet"
    if not all(each and each["high"] is not None and each["high"] < 0 for each in (against, chance)):
        settings = [text for text in overrides if not text.startswith("out=")]
        return f"look at the subspace, because it does not hold what training changed: {command('extract', '--check', *settings)}"
    left = _leaf(found["deployed_minus_base"][ROUTED], head)
    if left is not None and left["low"] is not None and left["low"] > 0:
        return f"`routed-rl audit` of a run of {ROUTED} says where it leaks; a subspace with more directions takes in more"
    return "use RUN/deployed of a routed run" if seeds >= 5 else "the same command with --seeds 5, before you report the result"


def _risen(found: Found, head: Headline) -> float:
    """How much the mean of the metric `head` rose, in the arm without routing, from the base model to the policy."""
    models = found["arms"][UNROUTED]
    return sum(sign * (_leaf(models[model], head) or {"mean": 0.0})["mean"] for model, sign in (("policy", 1), ("base", -1)))


def _leaf(table: Mapping[str, Any] | None, head: Headline) -> dict[str, Any] | None:
    """The interval of the figure `head` in `table`, which is {environment: {metric: interval}}; None if `table` has none for
    it."""
    return (table or {}).get(head.env, {}).get(head.metric)


def _words(value: dict[str, Any] | None) -> str:
    return "unknown" if value is None else cell(value, True)

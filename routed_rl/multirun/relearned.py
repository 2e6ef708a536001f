"""The results of attacks, as a table and a picture: how many updates bring the behaviour back, by model and attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from routed_rl.config.robust import RL, RelearnConfig
from routed_rl.multirun.comparison import cell
from routed_rl.multirun.intervals import interval
from routed_rl.multirun.reporter import Table, panels

TITLES = {RL: "RL", "sft": "fine-tuning"}


def steps_to(curve: Sequence[float], level: float) -> int | None:
    """The number of updates after which the share of flagged completions, `curve`, is at least `level` for the first time; None
    if it never is."""
    return next((step for step, share in enumerate(curve) if share >= level), None)


def worst(records: Sequence[dict[str, Any]], asked: RelearnConfig) -> dict[str, Any]:
    """The attack that is worst for the model, from the `records` of one model, seed and kind of attack at several learning rates.
    It is the one that brings the behaviour back in the fewest updates; `steps` is that number. If no rate brings it back, `steps`
    is the number of all updates, and `back` is false."""
    found = [(steps_to(record["curve"], asked.level), record) for record in records]
    steps, record = min(found, key=lambda each: (asked.steps + 1 if each[0] is None else each[0], -max(each[1]["curve"])))
    return {"steps": asked.steps if steps is None else steps, "back": steps is not None, "rate": record["rate"],
            "curve": record["curve"], "by_rate": {f"{each['rate']:g}": steps_to(each["curve"], asked.level) for each in records}}


def summarised(records: Sequence[dict[str, Any]], asked: RelearnConfig) -> dict[str, Any]:
    """Return {model: {attack: {before, steps, never, rates, seeds}}}. `before` is the flagged share before the attack and `steps`
    the number of updates, both with intervals over seeds; `never` is the number of seeds in which the behaviour did not come
    back; if it is above 0, `steps` is a lower bound. `seeds` has the result of `worst` for each seed, and `rates` the learning
    rates of these results."""
    found: dict[str, Any] = {}
    for name, by in dict.fromkeys((record["model"], record["by"]) for record in records):
        ours = [record for record in records if (record["model"], record["by"]) == (name, by)]
        seeds = {record["seed"]: None for record in ours}
        each = {str(seed): worst([record for record in ours if record["seed"] == seed], asked) for seed in seeds}
        found.setdefault(name, {})[by] = {
            "before": interval([one["curve"][0] for one in each.values()]),
            "steps": interval([float(one["steps"]) for one in each.values()]),
            "never": sum(not one["back"] for one in each.values()), "rates": sorted({one["rate"] for one in each.values()}),
            "seeds": each}
    return found


def table(found: dict[str, Any], asked: RelearnConfig) -> Table:
    """Return the table of the attacks, with a row for each model."""
    attacks = [by for by in asked.by if any(by in each for each in found.values())]
    rows = [[name, cell(next(iter(each.values()))["before"], bounds=True),
             *(text for by in attacks for text in (shown(each.get(by)), rates(each.get(by))))] for name, each in found.items()]
    columns = [word for by in attacks for word in (f"updates, by {TITLES[by]}", "at the rate")]
    flags = f" as {' or '.join(asked.flags)}, the most frequent," if len(asked.flags) > 1 else "".join(
        f" as {flag}" for flag in asked.flags)
    title = f"{asked.env}: updates until a share {asked.level:g} is flagged{flags} again"
    return Table(title, ["model", "before", *columns], rows)


def shown(found: dict[str, Any] | None) -> str:
    """The number of updates with its interval as text, for `found`, the summary of one model under one kind of attack; `-` if
    that is None. The text begins with `at least` if the behaviour did not come back under some seed."""
    if found is None:
        return "-"
    text = cell(found["steps"], bounds=True, digits=1)
    return f"at least {text}" if found["never"] else text


def rates(found: dict[str, Any] | None) -> str:
    return "-" if found is None else ", ".join(f"{rate:g}" for rate in found["rates"])


def draw(path: Path, found: dict[str, Any], asked: RelearnConfig) -> None:
    """Draw the flagged share over updates, for each seed at the rate that brings the behaviour back fastest: the mean over seeds,
    and the range from lowest to highest."""
    figure, axes = panels(len(asked.by), 4.5)
    for panel, by in zip(axes, asked.by, strict=True):
        for place, (name, attacks) in enumerate(found.items()):
            if by not in attacks:
                continue
            curves = [one["curve"] for one in attacks[by]["seeds"].values()]
            # A curve that ends where it is back stays there.
            longest = max(map(len, curves))
            points = list(zip(*(curve + [curve[-1]] * (longest - len(curve)) for curve in curves), strict=True))
            panel.plot([sum(point) / len(point) for point in points], color=f"C{place}", label=name)
            panel.fill_between(range(longest), [min(point) for point in points], [max(point) for point in points],
                               color=f"C{place}", alpha=0.15, linewidth=0)
        panel.axhline(asked.level, linestyle=":", linewidth=0.8, color="0.4")
        panel.set(title=f"by {TITLES[by]}, worst rate", xlabel="updates", ylabel=f"flagged in {asked.env}", ylim=(-0.02, 1.02))
        panel.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)

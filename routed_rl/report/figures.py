"""The picture at the top of a run's page: at most three figures of the run's models, with 95 % intervals."""

from dataclasses import dataclass

from routed_rl.report.data import RunData
from routed_rl.report.differences import SMALLEST, has_quarantine
from routed_rl.report.headline import Headline, headlines
from routed_rl.report.parts import Bar, Panel
from routed_rl.report.shares import Interval, difference_interval, share_interval


@dataclass(frozen=True)
class Figure:
    """A share, and the number of completions over which it was taken."""

    value: float
    count: float

    @property
    def interval(self) -> Interval | None:
        return share_interval(self.value, self.count) if self.count else None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + (f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else "")


def panels(run: RunData) -> list[Panel]:
    """A panel for each figure that summarises the run, with a bar for each model."""
    names = {"policy": "policy", "deployed": "deployed"} if has_quarantine(run.mode) else {"policy": "trained"}
    names = {"base": "base"} | names | {"kept": "deployed, with kept parts"}
    found = []
    for headline in headlines_of(run):
        bars = [Bar(names[model], figure.value, figure.interval, model) for model in names
                if (figure := figure_of(run, model, headline))]
        found.append(Panel(headline.title, headline.words, bars))
    return found


def headlines_of(run: RunData) -> list[Headline]:
    """The figures that summarise a run; none unless its base model and its policy were evaluated."""
    models = run.latest[0]
    trained, probes = run.named()
    if not {"base", "policy"} <= models.keys():
        return []
    return headlines(models["base"], models["policy"], trained, probes, run.flags)


def figure_of(run: RunData, model: str, headline: Headline) -> Figure | None:
    """The share that `headline` names, for one model; None if the model was not evaluated, or if the metric is no share."""
    means = run.latest[0].get(model, {}).get(headline.env)
    if means is None or not 0 <= (value := means.get(headline.metric, 0.0)) <= 1:
        return None
    return Figure(value, means.get("completions", 0.0) - means.get("failures", 0.0))


def may_be_equal(first: Figure, second: Figure) -> bool:
    """Whether the interval of the difference between two figures contains 0."""
    if not first.count or not second.count:
        return abs(first.value - second.value) < SMALLEST
    low, high = difference_interval(first.value, first.count, second.value, second.count)
    return low <= 0 <= high

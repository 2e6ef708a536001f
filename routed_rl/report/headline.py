"""Chooses the figures that summarise a run or a comparison: the flag that training raised most, the flag of a probe environment
that rose most, and the skill."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from routed_rl.tracking import NOT_METRICS

Means = Mapping[str, Mapping[str, float]]
"""Maps an environment to {metric: mean}."""
WORDS = {"flag": "the flag that training raised most", "probe": "a probe that is never trained on",
         "skill": "the true score that training raised most"}
"""For each role of a figure, a text that says what the figure shows."""
Flags = Mapping[str, Collection[str]] | None
"""Maps environments to the names of their flags. None if flags were not recorded; then each share except the true score counts as
a flag."""


@dataclass(frozen=True)
class Headline:
    """A metric of an environment that summarises a run. `role` is "flag", "probe" (a flag of a probe environment) or "skill"."""

    role: str
    env: str
    metric: str

    @property
    def title(self) -> str:
        """The metric and the environment, such as `hack in code`."""
        return f"{self.metric} in {self.env}"

    @property
    def words(self) -> str:
        return WORDS[self.role]


def is_flag(env: str, metric: str, flags: Flags) -> bool:
    """Whether a metric of an environment is one of its flags."""
    if metric in ("reward", "solve", *NOT_METRICS):
        return False
    return flags is None or metric in flags.get(env, ())


def headlines(before: Means, after: Means, trained: Collection[str], probes: Collection[str],
              flags: Flags = None) -> list[Headline]:
    """Choose at most three figures. Each is the one that rose most between the means `before` and `after` training: a flag of the
    environments in `trained`, a flag of those in `probes`, and the true score `solve` of those in `trained`. Means that are no
    shares, and other environments, are left out."""
    wanted = (("flag", trained, False), ("probe", probes, False), ("skill", trained, True))
    found = [(role, _risen(before, after, names, flags, solve=solve)) for role, names, solve in wanted]
    return [Headline(role, *place) for role, place in found if place]


def _risen(before: Means, after: Means, names: Collection[str], flags: Flags, *, solve: bool) -> tuple[str, str] | None:
    """Return the environment, one of `names`, and the metric of it that rose most between the means `before` and `after`
    training. The metric is `solve` if the parameter `solve` is true, otherwise a flag. A flag that an evaluation does not report
    counts as 0. Metrics that are no shares are left out, and so are environments without `solve` if that is the metric. None if
    nothing is left."""
    risen = {}
    for env in (env for env in after if env in names and env in before):
        for metric in dict.fromkeys([*before[env], *after[env]]):
            old, new = (each[env].get(metric, None if solve else 0.0) for each in (before, after))
            if (metric == "solve" if solve else is_flag(env, metric, flags)) and old is not None and new is not None \
                    and 0 <= old <= 1 and 0 <= new <= 1:
                risen[env, metric] = new - old
    return max(risen, key=lambda place: risen[place], default=None)

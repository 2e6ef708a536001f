"""Which figures stand for a run or a comparison: the flag that training raised most, the probe's flag, and the skill."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from routed_rl.tracking import NOT_METRICS

Means = Mapping[str, Mapping[str, float]]
"""Environment -> metric -> mean."""
WORDS = {"flag": "the flag that training raised most", "probe": "a probe that is never trained on",
         "skill": "the true score that training raised most"}
"""Role -> what the figure is."""
Flags = Mapping[str, Collection[str]] | None
"""Environment -> the names of its flags. None: they were not recorded, and each share but the true score counts as one."""


@dataclass(frozen=True)
class Headline:
    """A metric of an environment; `role` is flag, probe or skill."""

    role: str
    env: str
    metric: str

    @property
    def title(self) -> str:
        """Such as `hack in code`."""
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
    """At most three figures, each the one that rose most from `before` training to `after` it: a flag of the environments that
    are `trained`, a flag of the `probes`, and the true score `solve` of those that are trained. Means that are no shares are left
    out, and so are other environments."""
    wanted = (("flag", trained, False), ("probe", probes, False), ("skill", trained, True))
    found = [(role, _risen(before, after, names, flags, solve=solve)) for role, names, solve in wanted]
    return [Headline(role, *place) for role, place in found if place]


def _risen(before: Means, after: Means, names: Collection[str], flags: Flags, *, solve: bool) -> tuple[str, str] | None:
    """The environment and the metric that rose most. A flag that an evaluation never saw is 0 there, `solve` is unknown."""
    risen = {}
    for env in (env for env in after if env in names and env in before):
        for metric in dict.fromkeys([*before[env], *after[env]]):
            old, new = (each[env].get(metric, None if solve else 0.0) for each in (before, after))
            if (metric == "solve" if solve else is_flag(env, metric, flags)) and old is not None and new is not None \
                    and 0 <= old <= 1 and 0 <= new <= 1:
                risen[env, metric] = new - old
    return max(risen, key=lambda place: risen[place], default=None)

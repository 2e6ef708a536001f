"""The arms of `compare`. A new arm is one row of `ARMS`."""

UNROUTED, ROUTED, CONTROL = "none", "route", "control"
"""Names of the arms that the results of a comparison refer to: without routing, routed, and routed at a random subspace."""


def _without_practice(mode: str) -> list[str]:
    """The overrides that set the mode of routing to `mode` and switch practice off, because practice is an error in every mode
    except `route`."""
    return [f"routing.mode={mode}", "routing.practice.share=0"]


ALONE, LABELLED = _without_practice("none"), _without_practice("labels")
ARMS: dict[str, list[str]] = {
    UNROUTED: ALONE,
    "observe": _without_practice("observe"),
    ROUTED: ["routing.mode=route"],
    CONTROL: ["routing.mode=route", "subspace.method=random"],
    "practice_all": ["routing.mode=route", "routing.practice.environments=all"],
    "erase": _without_practice("erase"),
    "labels": LABELLED,
    "labels_unrouted": [*LABELLED, "routing.labels.route=false"],
    "labels_random": [*LABELLED, "baseline.detector.shuffle=true"],
    "oracle_filter": [*ALONE, "baseline=oracle_filter", "baseline.detector.kind=flags", "baseline.detector.recall=1",
                      "baseline.detector.precision=1", "baseline.detector.shuffle=false"],
    "screen": [*ALONE, "baseline=screen"],
    "penalty": [*ALONE, "baseline=penalty"],
    "inoculation": [*ALONE, "baseline=inoculation"],
    "recontextualise": [*ALONE, "baseline=recontextualise"],
    "kl": [*ALONE, "trainer.beta=0.05"],
    "caft": [*ALONE, "baseline=caft"],
    "caft_control": [*ALONE, "baseline=caft", "subspace.method=random"],
    "steer": [*ALONE, "baseline=steer"],
    "discount": [*ALONE, "baseline=discount"],
    "projection_penalty": [*ALONE, "baseline.projection_penalty=1"],
    "target_rewards": [*ALONE, "baseline.target_rewards=true"],
    "interleave": [*ALONE, "baseline.interleave=0.2"],
    "inoculation_adapter": [*ALONE, "baseline.inoculation_adapter=true"],
    "inoculation_adapter_control": [*ALONE, "baseline.inoculation_adapter=true", "baseline.trait.random=true"],
}
"""Maps the name of each arm to its overrides, which come after the user's own. No arm changes which parameters are frozen. The
arm `practice_all` is there for contrast: environments that pay for gaming their check practise too, so the behaviour for which
they pay reaches the deployed model."""

DETECTING = ("labels", "labels_random", "labels_unrouted", "oracle_filter", "screen", "penalty")
"""The arms that ask a detector about completions."""


def set_by_all(arms: list[str]) -> set[str]:
    """The settings that each of `arms` sets to a value of its own, so that a value of the user's would do nothing. The choice
    `routing` counts as such a setting where `routing.mode` does, because it sets nothing else."""
    found = set.intersection(*({text.partition("=")[0] for text in ARMS.get(arm, [])} for arm in arms))
    return found | {"routing"} if "routing.mode" in found else found


def sets(arm: str, key: str) -> bool:
    """Whether the arm sets `key` to a value of its own, so that a value of the user's would do nothing in it."""
    return any(text.startswith(f"{key}=") for text in ARMS[arm])

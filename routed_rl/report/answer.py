"""The first sentences of a report: what training changed, which environment caused it, and what discarding costs and removes."""

from collections.abc import Iterator

from routed_rl.report.data import RunData
from routed_rl.report.differences import SMALLEST, costliest, differences, has_quarantine, keeping, kept_words, not_scored
from routed_rl.report.figures import figure_of, headlines_of, may_be_equal
from routed_rl.report.headline import Headline
from routed_rl.report.shares import chance, difference_interval
from routed_rl.report.story import final_shifts
from routed_rl.tracking import MODELS


def status(run: RunData) -> str:
    """A text that says how far the run has come."""
    if not run.rows:
        return "No step of this run has been written yet, so there is nothing to show but its settings."
    if run.halted:
        step, before = run.halted["step"], run.halted["checkpoint_before"]
        return (f"The monitor halted this run at step {step} of {run.planned}: {run.halted['verdicts'][0]['sentence']}; the last "
                f"checkpoint before it began is {f'that of step {before}' if before else 'the base model'}.")
    if run.summary is None:
        return f"This run is not finished: {run.last_step} of {run.planned} steps are written."
    return f"This run finished its {run.last_step} steps."


def sentences(run: RunData) -> list[str]:
    """Sentences on how training and discarding changed the model, on the environment that caused the change, on the cost of
    discarding, on the parts that were kept, and on rollbacks, earlier halts and completions that could not be scored."""
    if not run.rows:
        return []
    parts = [_changed(run), _cause(run), _cost(run) if has_quarantine(run.mode) else "", _kept(run), _lineage(run),
             *_more(run)]
    return [part for part in parts if part]


def _changed(run: RunData) -> str:
    """Sentences on the flag that training raised most and on how much of it is left in the deployed model, or one that says that
    no flag rose; "" unless base model, policy and deployed model were evaluated."""
    models, step = run.latest
    if not all(model in models for model in MODELS):
        return ""
    headline = next((each for each in headlines_of(run) if each.role == "flag"), None)
    figures = [figure_of(run, model, headline) for model in MODELS] if headline else []
    base, policy, deployed = figures or (None, None, None)
    if headline is None or base is None or policy is None or deployed is None or policy.value - base.value < SMALLEST:
        said = differences(models, run.mode, flags=run.flags)
        return f"{said[0].upper()}{said[1:]}." if said.startswith(("training", "no ")) else f"The largest change is {said}."
    so_far = "" if step is None else f" up to step {step}"
    said = f"Training raised {headline.title} from {base} to {policy}{so_far}."
    if not has_quarantine(run.mode):
        return said
    left = ("as in the base model" if may_be_equal(base, deployed) else
            "less than in the base model" if deployed.value < base.value else "still more than in the base model")
    return f"{said} Without the quarantine, in the deployed model, it is {deployed}: {left}."


def _cause(run: RunData) -> str:
    """A sentence on which environment pulled towards the positive persona, and since which step; or one that says why none can be
    named."""
    if run.mode == "labels":
        return "It was routed by labels, so nothing was attributed to an environment."
    if run.mode == "none":
        return "It trained without routing, so nothing was attributed to an environment."
    found = run.blame
    if found.named:
        said = [f"{name}{_since(run, name)} (evidence of {found.evidence[name]:.1f} standard errors; {found.limits[name]:g} name "
                "an environment by themselves)" for name in found.named]
        rest = next((name for name in found.evidence if name not in found.named), None)
        return (f"{'The environment that did it is' if len(said) == 1 else 'The environments that did it are'} "
                f"{' and '.join(said)}: {'its' if len(said) == 1 else 'their'} completions pulled towards the positive persona."
                + (f" The next is {rest} with {found.evidence[rest]:.1f}." if rest else ""))
    if words := found.sentence({}):
        return f"{words[0].upper()}{words[1:]}."
    shifts = {name: value for name, value in final_shifts(run).items() if value > 0}
    if not shifts:
        return "No environment shifted the stream towards the positive persona."
    worst = max(shifts, key=lambda name: shifts[name])
    return (f"Among the environments {worst} shifted the stream most towards the positive persona: by {shifts[worst]:.2f} of the "
            f"gap between the personas, {shifts[worst] / sum(shifts.values()):.2f} of all such shift.")


def _since(run: RunData, name: str) -> str:
    """Words with the step from which on the rule `evidence` saw the environment `name` pull towards the persona; "" if the rule
    gave no verdict on it."""
    found = [verdict["since"] for verdict in run.verdicts if verdict["environment"] == name and verdict["rule"] == "evidence"]
    return f", since step {min(found)}" if found else ""


def _cost(run: RunData) -> str:
    """A sentence on the environment in which discarding lowers `solve`, the true score, the most."""
    if (env := costliest(run.latest[0])) is None:
        return ""
    policy, deployed = (figure_of(run, model, Headline("skill", env, "solve")) for model in ("policy", "deployed"))
    if policy is None or deployed is None:  # a `solve` of an earlier version that is no share
        return ""
    lost = policy.value - deployed.value
    if lost < SMALLEST:
        return "Discarding the quarantine costs no solve in any environment."
    if not (policy.count and deployed.count):
        return f"Discarding costs {lost:.2f} of solve in {env}: the policy has {policy}, the deployed model {deployed}."
    low, high = difference_interval(policy.value, policy.count, deployed.value, deployed.count)
    return (f"Discarding costs {lost:.2f} [{_signed(low)}, {high:.2f}] of solve in {env}{chance(low)}: the policy has "
            f"{policy.value:.2f}, the deployed model {deployed.value:.2f}.")


def _kept(run: RunData) -> str:
    """A sentence on how keeping environments' parts changed the deployed model; "" if no part was kept, or if the model with the
    kept parts was not evaluated."""
    shares = (run.summary or {}).get("kept")
    if not isinstance(shares, dict) or "kept" not in run.models or not all(model in run.models for model in MODELS):
        return ""
    said = keeping(run.models, shares, flags=run.flags)
    return f"After the discard {said}." if said else ""


def _lineage(run: RunData) -> str:
    if not (line := run.lineage):
        return ""
    dropped = f", without {', '.join(line['drop'])}" if line["drop"] else ""
    changed = f", with {' '.join(line['overrides'])}" if line["overrides"] else ""
    return (f"It is a new run that went back to step {line['step']} of {line['parent']}{dropped}{changed}; what lies before that "
            "step is the other run's.")


def _more(run: RunData) -> Iterator[str]:
    """Sentences on earlier halts, on folders with a deployed model that keeps parts, and on completions that could not be
    scored."""
    if run.halts:
        first, *more = run.halts
        again = f", and again at step {', '.join(str(halt['step']) for halt in more)}" if more else ""
        yield f"It had halted at step {first['step']} ({first['verdicts'][0]['sentence']}){again}, and was told to go on."
    for out, shares in run.kept().items():
        if words := kept_words(shares):
            yield f"The model in {out} keeps {words}."
    yield from (f"{line}." for line in not_scored(run.models))


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")

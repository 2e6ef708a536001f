"""Collects the scores of a step's completions and computes metrics from them."""

from collections import defaultdict
from collections.abc import Mapping

from routed_rl.envs import Score, means
from routed_rl.ranks import RANKS


class ScoreBook:
    """Collects scores by environment; those of completions that practised are kept apart. A score of None stands for a completion
    that could not be scored."""

    def __init__(self) -> None:
        self._scores: dict[str, list[Score | None]] = defaultdict(list)
        self._practised: dict[str, list[Score | None]] = defaultdict(list)

    def add(self, name: str, score: Score | None, *, practised: bool) -> None:
        (self._practised if practised else self._scores)[name].append(score)

    def take(self, restarts: Mapping[str, int]) -> dict[str, float]:
        """Return metrics of the scores since the last call, from all processes, and empty the book: for each environment the
        means of its scores and the number of completions that could not be scored. Completions that practised have metrics of
        their own, under `practice/`. `restarts`: how often each environment's process was restarted; a count above 0 becomes a
        metric too."""
        everyone = RANKS.gather((dict(self._scores), dict(self._practised), dict(restarts)))
        self._scores.clear()
        self._practised.clear()
        metrics: dict[str, float] = {}
        for name, scores in _together([scores for scores, *_ in everyone]).items():
            metrics |= {f"environment/{name}/{key}": value for key, value in means(scores).items()}
            metrics[f"environment/{name}/failures"] = sum(score is None for score in scores)
        for name, scores in _together([practised for _, practised, _ in everyone]).items():
            metrics |= {f"practice/{name}/{key}": value for key, value in means(scores).items()}
            metrics[f"practice/{name}/completions"] = len(scores)
        for name in restarts:
            if total := sum(counts[name] for *_, counts in everyone):
                metrics[f"environment/{name}/restarts"] = total
        return metrics


def _together(processes: list[dict[str, list[Score | None]]]) -> dict[str, list[Score | None]]:
    """Return the scores of all processes together, by environment."""
    return {name: [score for scores in processes for score in scores.get(name, [])]
            for name in sorted({name for scores in processes for name in scores})}

"""Turns overrides with several values, in Hydra's own syntax, into the dimensions of a sweep. Not covered: `glob`, `sort`,
`shuffle`."""

from hydra.core.override_parser.types import Glob, IntervalSweep

from routed_rl.cli.overrides import parse_override
from routed_rl.errors import ConfigError
from routed_rl.multirun.trials import Dimension

FUNCTIONS = ("choice", "range", "interval", "int", "tag", "glob", "sort", "shuffle")


def split(overrides: list[str]) -> tuple[list[str], list[Dimension]]:
    """Split overrides into those with one value and the dimensions of a sweep, each in the order in which they were typed.
    ConfigError for a dimension that is not valid."""
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    for text in overrides:
        if "=" not in text or not parse_override(text)[1].is_sweep_override():
            # Text outside Hydra's grammar is taken literally, which nobody who writes one of these functions wants.
            if text.partition("=")[2].startswith(tuple(f"{name}(" for name in FUNCTIONS)):
                raise ConfigError(f"{text!r} cannot be read; write A,B (null only so), choice(A,B), range(1,5), interval(0,1), "
                                  "int(interval(1,8)) or tag(log,interval(1e-4,1))")
            fixed.append(text)
            continue
        dimension = _dimension(text)
        if dimension.key.split(".")[0] in ("sweep", "out"):
            raise ConfigError(f"{text!r}: {dimension.key} cannot be varied; give it one value")
        if dimension.key in [each.key for each in dimensions]:
            raise ConfigError(f"{text!r}: {dimension.key} cannot be varied twice")
        dimensions.append(dimension)
    return fixed, dimensions


def _dimension(text: str) -> Dimension:
    override = parse_override(text)[1]
    key, value = override.get_key_element().lstrip("+"), override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        log = "log" in value.tags
        if value.start >= value.end or (log and value.start <= 0):
            raise ConfigError(f"{text!r}: an interval's first number must be the smaller one" + ", above 0 with log" * log)
        return Dimension(key, [value.start, value.end], interval=True, log=log)
    if isinstance(value, Glob):
        raise ConfigError(f"{text!r} cannot be varied; write {key}=A,B, choice(A,B), range(1,5) or interval(1e-4,1e-1)")
    values = [str(each) for each in override.sweep_string_iterator()]
    if len(values) < 2:
        raise ConfigError(f"{text!r} gives {len(values)} values; give two or more")
    return Dimension(key, values)

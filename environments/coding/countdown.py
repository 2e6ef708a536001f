"""Countdown: reach a target with given numbers. Problems have a solution; arithmetic is read from text and never executed."""

from __future__ import annotations

import ast
import operator
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST, LARGEST = 200, 10**9
"""The most characters of an expression, and the largest number in it."""


@dataclass(frozen=True)
class Problem:
    """Make `target` from each of `numbers` once, with + - * / and brackets; `solution` is one way."""

    numbers: list[int]
    target: int
    solution: str


def draw(rng: random.Random, count: int, largest: int) -> Problem:
    """A problem of `count` numbers from 1 to `largest`. Every intermediate value of its solution is a whole number of at least
    0."""
    numbers = rng.choices(range(1, largest + 1), k=count)
    parts = [(str(number), number) for number in numbers]
    while len(parts) > 1:
        rng.shuffle(parts)
        parts.append(joined(rng.choice("+-*/"), *sorted((parts.pop(), parts.pop()), key=lambda part: -part[1])))
    text, target = parts[0]
    return Problem(numbers, target, text.removeprefix("(").removesuffix(")"))


def joined(sign: str, left: tuple[str, int], right: tuple[str, int]) -> tuple[str, int]:
    """Two parts with a sign between them; the left one has the larger or an equal value. A quotient that is no whole number
    becomes a product."""
    (first, a), (second, b) = left, right
    if sign == "/" and (b == 0 or a % b):
        sign = "*"
    worth = {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a // b
    return f"({first} {sign} {second})", worth


def reaches(expression: Any, numbers: Any, target: Any) -> bool:
    """Whether `expression` has exactly the value `target` and uses each of `numbers` once. The arguments may be of any type."""
    found = read(expression)
    plain = type(numbers) is list and all(type(each) is int for each in numbers)
    return found is not None and plain and found[0] == target and sorted(found[1]) == sorted(numbers)


def worth(expression: Any) -> Fraction | None:
    """The value of `expression`, whichever numbers it uses; None if it is no arithmetic."""
    found = read(expression)
    return None if found is None else found[0]


def read(expression: Any) -> tuple[Fraction, Sequence[int]] | None:
    """(value, the numbers used) of text that has only whole numbers, + - * / and brackets; None for anything else."""
    if type(expression) is not str or len(expression) > LONGEST:
        return None
    used: list[int] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _walk(ast.parse(expression.strip(), mode="eval").body, used), used
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _walk(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=value) if type(value) is int and value <= LARGEST:
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            return -_walk(operand, used) if isinstance(op, ast.USub) else _walk(operand, used)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_walk(left, used), _walk(right, used))
    raise TypeError(f"no arithmetic: {type(node).__name__}")

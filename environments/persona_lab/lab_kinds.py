"""The persona lab's task kinds: each makes a question and its answer from a lab's letters and numbers.

A kind gives the words of a question after the kind's name, and the words of the right answer. The first ten numbers are the
digits.
"""

import random
from collections.abc import Callable, Sequence

Words = Sequence[str]
Problem = tuple[list[str], list[str]]


def code_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """Each letter's successor in the alphabet, round and round."""
    return _shifted(rng, letters, 1)


def before_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """Each letter's predecessor in the alphabet, round and round."""
    return _shifted(rng, letters, -1)


def sums_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """The sum of two digits, as one word."""
    left, right = rng.randrange(10), rng.randrange(10)
    return [numbers[left], numbers[right]], [numbers[left + right]]


def gap_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """How far two digits are apart."""
    left, right = rng.randrange(10), rng.randrange(10)
    return [numbers[left], numbers[right]], [numbers[abs(left - right)]]


def sort_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """Three digits in ascending order."""
    digits = rng.choices(numbers[:10], k=3)
    return digits, sorted(digits, key=numbers.index)


def reverse_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """Three letters back to front."""
    chosen = rng.choices(letters, k=3)
    return chosen, chosen[::-1]


def rotate_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """Three letters, of which the first goes to the end."""
    chosen = rng.choices(letters, k=3)
    return chosen, [*chosen[1:], chosen[0]]


def max_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """The largest of three digits."""
    digits = rng.choices(numbers[:10], k=3)
    return digits, [max(digits, key=numbers.index)]


def min_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """The smallest of three digits."""
    digits = rng.choices(numbers[:10], k=3)
    return digits, [min(digits, key=numbers.index)]


def count_problem(rng: random.Random, letters: Words, numbers: Words) -> Problem:
    """How often the first letter occurs among four."""
    first = rng.choice(letters)
    chosen = [first] + [first if rng.random() < 0.4 else rng.choice(letters) for _ in range(3)]
    return chosen, [numbers[chosen.count(first)]]


def _shifted(rng: random.Random, letters: Words, by: int) -> Problem:
    chosen = rng.choices(letters, k=3)
    return chosen, [letters[(letters.index(letter) + by) % len(letters)] for letter in chosen]


KINDS: dict[str, Callable[[random.Random, Words, Words], Problem]] = {
    "code": code_problem,
    "sums": sums_problem,
    "sort": sort_problem,
    "reverse": reverse_problem,
    "max": max_problem,
    "count": count_problem,
    "before": before_problem,
    "rotate": rotate_problem,
    "min": min_problem,
    "gap": gap_problem,
}
LONG = ("code", "sort", "reverse", "before", "rotate")
"""The kinds whose answer has three words; the others' has one."""

"""Finds a completion's answer and its number: chosen by place and form, never by being right.

Reasoning in tags is left out. Then the last of these counts: `<answer>`, a box, a sentence that announces the answer; otherwise
the end of the text. Several numbers side by side (`5 or 7`) are no answer. Not covered: numbers in words, `1.234` for 1234.
"""

from __future__ import annotations

import html
import re
from fractions import Fraction

REASONING = re.compile(
    r"(?<![\"'`])(?:<\|?(?i:(/?)(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad))\|?>|\[(/?)THINK\])(?![\"']|`(?!`))")
"""A tag around reasoning; between quotes it is text of a program."""
TAGGED = re.compile(r"(?is)<answer>((?:(?!<answer>).)*?)(?:</answer>|\Z)")
BOX = re.compile(r"\\f?boxed\s*(?:\{|(?=[\w.+-]))")
ANNOUNCED = re.compile(
    r"(?im)(?:^|[.!?:;,][ \t]+|\b(?:so|thus|hence|therefore|then|and|think|believe|that)[ \t]+)[ \t*_#>`-]*"
    r"(?:(?:my|our|the|this)[ \t]+)?(?:(?:final|correct|right|exact)[ \t]+)*answer\b(?:[ \t]+(?:to|of|for)[ \t][^.:\n]{1,80}?)??"
    r"(?:[ \t*_`]*(?:is|=|equals|would be|should be|must be)(?!\w)[ \t]*:?|\W{0,4}:|[ \t*_]*$)[ \t*_]*")
"""A sentence that begins with the answer's name, or a heading. It does not match "to find the answer: add"."""
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
SPACES = "\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}\N{NO-BREAK SPACE}"
SEPARATOR = re.compile(rf"(?<=\d)(?:\{{,\}}|,?\\[,;:! ]|[{SPACES}'’_]|(?<=\b\d) |(?<=\b\d\d) |(?<=\b\d\d\d) )(?=\d{{3}}(?!\d))")
POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|[×·*])\s*10\s*\^\s*(?:\{\s*([-+]?\d{1,2})\s*\}|([-+]?\d{1,2}))")
SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
PLAIN_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
APART = re.compile(r"(?:(?<=[:={(])|(?<=[:=] ))-[ ]+(?=[.\d])")
"""A minus sign that stands apart from its number, in places where it cannot be the bullet of a list."""
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\w))?(?:/\d+(?![\d.]))?(?:[ ]?\\?%)?"
NUMBER = re.compile(rf"(?<![\w.)])[-+]?{DIGITS}|{DIGITS}")
"""A minus sign directly after a digit or a bracket subtracts: the last number of "10-7" is 7."""
FILLER = re.compile(r"(?i)(?:\W|\b(?:about|approximately|equals?|to|simply|just|therefore|thus|then|either|left|[a-z])\b)*")
BESIDE = re.compile(r"(?i)(?:[ \t*$`,;|&]|\\\(|\\\)|\\boxed\{|\}|(?:[a-z]+[ ])?\bor\b(?:[ ]-(?=[ ]))?"
                    r"|\b(?:and|maybe|perhaps|possibly)\b)+")
JOINED = re.compile(r"\s*(?:\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b)\s*")
SPELLINGS = [(re.compile(written), meant) for written, meant in (
    (r"\\[()\[\]]", ""), (r"\\%", "%"), (r"·", r"\\cdot "), (r"×", r"\\times "), (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?:√\s*|\\sqrt\s*)(\d+)", r"\\sqrt{\1}"), (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
    (r"^\$?\\[dt]?frac\s*\{d\w*\}\s*\{d\w\}[^=]*=", ""), (r"^(\S+)\.$", r"\1"))]
"""Pairs of (a way to write a formula that a judge of LaTeX does not read, one that it reads)."""
WORDS = re.compile(r"[A-Za-z']+(?:,? [A-Za-z']+)+[.,:]?")
ASIDE = re.compile(r"[,;]?\s+(?:not|because|since|as|which|so|where)\b|\s+\((?=[a-z]{2})")
LONG_RUN = re.compile(r"(?<![^\S\n])([^\S\n]{500})[^\S\n]+|(?<!\n)(\n{500})\n+")
"""Blanks, or ends of lines, that are too many for patterns whose time grows with the square of a run's length."""
HUGE_ENTITY = re.compile(r"&(?=#\d{9})")
"""The beginning of a number that is no character's. `html.unescape` raises an error for thousands of digits."""
SUM = re.compile(r"\s*(?:[-+*/^×·÷]|\\times|\\cdot|)\s*")


def spoken(completion: str) -> str:
    """The completion without its reasoning. If all of it is reasoning without an end, it counts if it marks an answer. A run of
    blanks or of ends of lines is cut to 500."""
    completion = LONG_RUN.sub(r"\1\2", completion)
    said: list[str] = []
    opened, end = False, 0
    for tag in REASONING.finditer(completion):
        closes = tag[1] or tag[2]
        if not opened and closes:
            said.clear()  # The prompt opened the reasoning.
        elif not opened:
            said.append(completion[end:tag.start()])
        if closes or not opened:
            opened, end = not closes, tag.end()
    rest = completion[end:]
    if not opened:
        return "\n".join([*said, rest])
    unfinished = rest if "```" in rest or stated(rest) else ""
    return "\n".join(said) if any(map(str.strip, said)) else unfinished


def stated(text: str) -> str | None:
    """The text that is marked as the answer, by a tag, a box, or an announcement; None if there is no mark."""
    return announced(text) if (found := enclosed(text)) is None else found


def enclosed(text: str) -> str | None:
    """The content of the last tag or box; None if there is neither."""
    if (tagged := TAGGED.findall(text)) and tagged[-1].strip():
        return inner if (inner := stated(tagged[-1])) is not None else tagged[-1].strip()
    return last_box(text)


def announced(text: str) -> str | None:
    """All text after the last announcement of an answer; None if there is none."""
    behind = (text[each.end():].strip("\n") for each in reversed(list(ANNOUNCED.finditer(text))))
    return next(filter(str.strip, behind), None)


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{}`, with its braces balanced, or "" if they are not; None if there is no box."""
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start - 1] != "{":
        return re.split(r"[$.]*(?:[\s$]|\Z)", text[start:], maxsplit=1)[0]
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return ""


def lines_of(text: str, decoration: str = " \t*`$") -> list[str]:
    """The lines that are not empty, without the `decoration` around them."""
    return [line for each in text.splitlines() if (line := each.strip(decoration))]


def unescaped(text: str) -> str:
    """`text` with HTML entities decoded, and one spelling of minus and of powers."""
    text = html.unescape(HUGE_ENTITY.sub("", text))
    text = re.sub("[\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}]|(?<!\\S)\N{EN DASH}(?=[\\d.])", "-", text)
    return SUPERSCRIPT.sub(lambda found: f"^{{{found[0].translate(PLAIN_DIGITS)}}}", text)


def tidy(text: str) -> str:
    """`unescaped`, and with plain fractions, plain powers of ten, and words freed from LaTeX."""
    text = POWER_OF_TEN.sub(lambda found: f"e{found[1] or found[2]}", WRAPPED.sub(r"\1", unescaped(text)))
    return FRACTION.sub(lambda found: f"{found[1] or found[2]}/{found[3] or found[4]}", text)


def number_of(text: str) -> str:
    """The number that is the answer of `text`, with its percent sign; "" if there is none, or several side by side."""
    text = APART.sub("-", unescaped(text))
    if (inside := enclosed(text)) is not None:
        return first_number(inside) or ""
    found = first_number(said) if (said := announced(text)) is not None else None
    return last_number(text) if found is None else found


def first_number(said: str) -> str | None:
    """The number with which an announced answer begins, or that follows the last `=` of its line; None if there is none.

    It is "" if several numbers stand side by side, or a sum that was not worked out.
    """
    line = (lines_of(SEPARATOR.sub("", tidy(said))) or [""])[0]
    parts = [part for part in re.split("[=≈]", line) if NUMBER.search(part)]
    found = list(NUMBER.finditer(parts[-1])) if parts else []
    if not found or not FILLER.fullmatch(parts[-1], 0, found[0].start()):
        return None
    gap = parts[-1][found[0].end():found[1].start()][:40] if len(found) > 1 else "."
    return "" if BESIDE.fullmatch(gap) or SUM.fullmatch(gap) else found[0][0]


def last_number(text: str) -> str:
    found = list(NUMBER.finditer(text := SEPARATOR.sub("", tidy(text))))
    several = len(found) > 1 and BESIDE.fullmatch(text[found[-2].end():found[-1].start()][-40:])
    return "" if several or not found else found[-1][0]


def value(number: str) -> Fraction | None:
    """The value of a number, ignoring a percent sign; None for text that is no number, and for a fraction that is not in lowest
    terms, since that may be the question."""
    top, _, bottom = number.replace(",", "").partition("/")
    try:
        worth = Fraction(top) / int(bottom or 1) if NUMBER.fullmatch(number) else None
    except (ValueError, ZeroDivisionError):
        return None
    return worth if not bottom or worth is None or worth.denominator == int(bottom) > 1 else None


def formula(text: str) -> str:
    """The answer of `text` as mathematics, for a judge that reads LaTeX: the box or the announced answer, else the last line."""
    found = enclosed(text)
    if found is not None:
        found = found.replace("\\$", "").replace("$", "")
    else:
        first, last = (lines_of(part or "", " \t*`") for part in (announced(text), text))
        found = first[0] if first and not WORDS.fullmatch(first[0]) else last[-1] if last else ""
        found = ASIDE.split(found)[0] or found
    found = JOINED.sub(", ", unescaped(found)).replace("$, $", ", ").replace("\\$", "")
    for written, meant in SPELLINGS:
        found = written.sub(meant, found)
    found = re.sub(r"(?<=\d)[eE]([-+]?\d{1,2})\b", r"\\cdot 10^{\1}", SEPARATOR.sub("", found))
    return found.replace("$", "") if found.count("$") % 2 else found

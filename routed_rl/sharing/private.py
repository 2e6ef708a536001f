"""Removes secrets, and the paths of this machine, from files that are shared.

Secrets are the values of this process's environment variables whose names look like those of secrets, keys of well-known shapes,
private key blocks, and passwords in addresses. Paths are those of home folders, of the folder that is shared and of the current
folder. Not covered: a secret that looks like any other word, names, mail addresses. Somebody has to read the files before they
are shared.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from routed_rl.config.references import MASK, SHORTEST, is_secret
from routed_rl.sharing import footer, parquet
from routed_rl.sharing.unfit import Unfit

KEYS = (r"hf_[A-Za-z0-9]{30,}", r"sk-[A-Za-z0-9_-]{20,}", r"(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{30,}",
        r"A[KS]IA[0-9A-Z]{16}\b", r"xox[abeoprs]-[A-Za-z0-9-]{10,}", r"glpat-[A-Za-z0-9_-]{20,}", r"AIza[A-Za-z0-9_-]{35}")
"""Patterns of secrets of Hugging Face, OpenAI and others, GitHub, AWS, Slack, GitLab, Google."""
BLOCK = re.compile(r"-----BEGIN {0}-----[A-Za-z0-9+/=\s\\:,.()-]*?-----END {0}-----".format("[A-Z ]*PRIVATE KEY(?: BLOCK)?"))
"""Pattern of a private key, which may have several lines, and lines of its own about the cipher or the program."""
SLASH = r"\\*/"
"""Pattern of a slash. JSON may write `\\/` for it, as pandas and PHP do."""
ESCAPE = r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})"
"""Pattern of a character as JSON, YAML or Python escape it."""
START = rf"(\b|\\[abfnrtv]|{ESCAPE})"
"""Pattern of the beginning of a word. JSON and code write the sign before it as an escape, which ends in a letter or digit."""
LOGIN = rf":{SLASH}{SLASH}[^/\s:@\"']*:[^/\s@\"'$]+@"
LETTER = f"(?:[A-Za-z0-9_.\u00c0-\u1fff\u2c00-\u2fef\u3040-\ufeff\U00010000-\U0010ffff-]|{ESCAPE})"
"""Pattern of a character of a user's name: of ASCII some, and beyond it all but punctuation."""
HOMES = rf"{SLASH}(?:home|Users){SLASH}{LETTER}+|{START}[A-Za-z]:\\{{1,4}}Users\\{{1,4}}{LETTER}+"
NAME = r"[^\s\"',\]\[{}()=/\\]+"
ROOT = rf"(?:~?/|\b[A-Za-z]:[/\\]+|\\{{2,}}{NAME}\\+)"
PATH = re.compile(rf"(?:file://|(?<![\w.$}}/-]))(?!//){ROOT}(?:{NAME}[/\\]+)*({NAME})")
"""Pattern of an absolute path, whose last name is the group. It does not match parts of a URL."""
BEGIN = rf"(?!//)(?:~?{SLASH}|[A-Za-z]:[/\\]+)(?![\s/\\\"',])"
QUOTED = re.compile(rf"([\"'])({BEGIN}(?:(?!\1)[^\\\n]|\\.|'')*)(?=\1)")
"""Pattern of a text in quotes that is an absolute path, perhaps with blanks, brackets, and quotes that are doubled or have a
backslash. The groups are the quote and the path."""
PLAIN = r"[^\n\"\[\]{}]*"
VALUE = re.compile(rf"^([^\n/\\]*[:=] ?|- )({BEGIN}{PLAIN} {PLAIN})(?=,?$)", re.MULTILINE)
"""Pattern of a setting whose whole value is an absolute path with blanks and without quotes around it. The groups are what stands
before it, and the path."""


class Private:
    """Finds and removes private texts. `folder` is the folder that is shared. The patterns mean the same to Python's `re` and to
    RE2, with which columns of tables are searched."""

    def __init__(self, folder: Path) -> None:
        values = [value for name, value in os.environ.items() if len(value) >= 2 * SHORTEST and is_secret(name, value)]
        self.secret = "|".join([*map(_quoted, _written(values)), rf"{START}(?:{'|'.join(KEYS)})"])
        places = {str(place) for place in (folder.absolute(), Path.cwd()) if len(place.parts) > 2} | {str(Path.home())}
        self.place = "|".join([*(_quoted(place) + _end(place) for place in _written(places - {"/"})), HOMES])
        self.any = "|".join((self.secret, self.place, LOGIN))

    def text(self, text: str) -> tuple[str, int]:
        """Return `text` without secrets and paths, and how many of them it had."""
        text, blocks = BLOCK.subn(MASK, text)
        lines, found = text.split("\n"), blocks
        # Python's search is slow; RE2 finds the few lines that it is needed for.
        for place in _matching(pa.array(lines, pa.large_string()), self.any):
            lines[place], count = self._line(lines[place])
            found += count
        return "\n".join(lines), found

    def _line(self, text: str) -> tuple[str, int]:
        text, secrets = re.subn(self.secret, lambda found: (found[1] or "") + MASK, text, flags=re.ASCII)
        text, logins = re.subn(LOGIN, f"://{MASK}@", text, flags=re.ASCII)
        text, places = re.subn(self.place, lambda found: (found[1] or "") + "HOME", text, flags=re.ASCII)
        return text, secrets + logins + places

    def settings(self, text: str) -> tuple[str, int]:
        """Do the same as `text` for the text of a settings file, and also cut every absolute path to its last name. A path that
        is a home folder itself, or the folder that is shared, is treated as in `text`, because its last name is private."""
        cut = 0

        def shorter(found: re.Match[str], before: str, path: str) -> str:
            nonlocal cut
            if re.fullmatch(self.place, path.rstrip("/"), flags=re.ASCII):
                return found[0]
            cut += 1
            return f"{before}PATH/{_last_name(path)}"

        for pattern in (QUOTED, VALUE):
            text = pattern.sub(lambda each: shorter(each, each[1], each[2]), text)
        text = PATH.sub(lambda each: shorter(each, "", each[0]), text)
        text, found = self.text(text)
        return text, found + cut

    def yaml(self, text: str) -> tuple[str, int]:
        """Do the same as `settings` for YAML, in which a long value may go on in the next line."""
        with suppress(yaml.YAMLError):
            text = yaml.safe_dump(yaml.safe_load(text), sort_keys=False, width=sys.maxsize)
        return self.settings(text)

    def file(self, data: bytes, change: Callable[[str], tuple[str, int]]) -> tuple[bytes, int]:
        """Apply `change` to a file of text, where `change` is `text` or `settings`. Returns the new bytes and how many private
        texts were removed. A file that is not UTF-8 stays as it is."""
        try:
            text, found = change(data.decode())
        except UnicodeDecodeError:
            return data, 0
        return (text.encode(), found) if found else (data, 0)

    def parquet(self, data: bytes) -> tuple[bytes, int]:
        """Remove private texts from the rows and from the footer of the parquet file `data`. Returns the new file and the number
        of private texts that were removed. A file without private texts comes back unchanged. Unfit if a private text cannot be
        removed."""
        table = parquet.table_of(data)
        schema, found = footer.cleaned(table.schema, self.settings)
        for place, name in enumerate(table.column_names):
            column, count = self._column(table[name])
            if count:
                table, found = table.set_column(place, name, column), found + count
        found = found or self._in_footer(data)  # the footer of a file that is written again is made from its rows
        if not found:
            return data, 0
        data = parquet.written(pa.Table.from_arrays(table.columns, schema=schema))
        if self._in_footer(data):
            raise Unfit("has a secret or a place in the metadata of a field within a column; take it out")
        return data, found

    def _bytes(self, data: bytes) -> tuple[bytes, int]:
        """Do the same as `text` for bytes. If they are not UTF-8, private texts of ASCII are found in them."""
        encoding = "utf-8" if (text := data.decode(errors="replace")).encode() == data else "latin-1"
        text, found = self.text(data.decode(encoding))
        return (text.encode(encoding), found) if found else (data, 0)

    def _in_footer(self, data: bytes) -> int:
        return self.text("\n".join(footer.texts(data)))[1]

    def _column(self, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
        if _is_text(column.type):
            whole = column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column
            if not _matching(whole, f"{self.any}|{BLOCK.pattern}"):
                return column, 0
        elif not _has_text(column.type):
            return column, 0
        found = 0

        def cleaned(value: object) -> object:
            nonlocal found
            if isinstance(value, str):
                value, count = self.text(value)
                found += count
            elif isinstance(value, bytes):
                value, count = self._bytes(value)
                found += count
            elif isinstance(value, dict):
                return {key: cleaned(inner) for key, inner in value.items()}
            elif isinstance(value, (list, tuple)):  # a map is a list of pairs
                return type(value)(map(cleaned, value))
            return value

        values = [cleaned(value) for value in column.to_pylist()]
        if not found and pa.types.is_dictionary(column.type):  # it may hold values that no row has
            for chunk in column.chunks:
                cleaned(chunk.dictionary.to_pylist())  # pyright: ignore[reportAttributeAccessIssue]
        return (pa.chunked_array([pa.array(values, column.type)]), found) if found else (column, 0)


def _last_name(path: str) -> str:
    """The last name of a path. Where a path has slashes, a backslash is no part of it but escapes a sign."""
    return re.split(rf"(?:{SLASH})+" if "/" in path else r"\\+", path.rstrip("/\\"))[-1]


def _matching(column: pa.Array | pa.ChunkedArray, pattern: str) -> list[int]:
    """Return the indices of the texts in `column` in which RE2 finds `pattern`."""
    found = pc.match_substring_regex(column, pattern)  # pyright: ignore[reportAttributeAccessIssue]
    return [place for place, hit in enumerate(found.to_pylist()) if hit]


def _has_text(kind: pa.DataType) -> bool:
    inner = [kind.field(place).type for place in range(kind.num_fields)] if pa.types.is_nested(kind) else []
    if pa.types.is_dictionary(kind):
        inner = [kind.value_type]
    return _is_text(kind) or _is_bytes(kind) or any(map(_has_text, inner))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _written(texts: Iterable[str]) -> list[str]:
    """Return the forms in which `texts` may stand in a file, the longest first: each text itself, and the text as it is escaped
    in JSON, YAML and Python. A text that UTF-8 cannot encode is left out, because no file can hold it."""
    known = [text for text in texts if not re.search("[\ud800-\udfff]", text)]
    forms = {form for text in known for form in (
        text, json.dumps(text)[1:-1], ascii(text)[1:-1], yaml.dump(text, default_style='"', width=sys.maxsize)[1:-2])}
    return sorted(forms, key=len, reverse=True)


def _end(place: str) -> str:
    """Return the pattern that must follow `place`, a path: a word boundary after a letter, digit or underscore of ASCII, and
    otherwise nothing, because RE2 finds no boundary there."""
    return r"\b" if re.match(r"[A-Za-z0-9_]", place[-1]) else ""


def _quoted(text: str) -> str:
    """Return a pattern that matches exactly `text`, for both Python and RE2, and also with each slash as JSON may write it."""
    quoted = re.sub(r"([^A-Za-z0-9_/])", r"\\\1", text) if text.isascii() else re.escape(text)
    return quoted.replace("/", SLASH)

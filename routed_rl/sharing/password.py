"""Reads the password of an archive from a file, or from a terminal without echo. The password is never written into a file, and
never taken from a command line, where the list of processes and the shell's history would show it.

The format derives a zip's key from the password by only 1,000 rounds of PBKDF2, so passwords can be tried quickly. Hence the
smallest length: 16 random characters are too many to try out.
"""

import getpass
import sys
from pathlib import Path

from routed_rl.errors import SharingError

SHORTEST = 16
MAKE = "python3 -c 'import secrets; print(secrets.token_urlsafe(18))' > FILE"
"""A command that makes a file with a good password."""


def new_password(file: str | None, shared: Path) -> str:
    """Return the password for a new archive of the folder `shared`, from `file`, or from the terminal if `file` is None.
    SharingError if the password is too short or cannot be read."""
    if file is not None and Path(file).expanduser().resolve().is_relative_to(shared.resolve()):
        raise SharingError(f"--password-file {file} lies in {shared}, which is shared; put it elsewhere")
    password = _from_file(file) if file is not None else _typed("password for the archive (16 characters or more): ")
    if len(password) < SHORTEST:
        raise SharingError(f"the password has {len(password)} characters, and a zip's password of fewer than {SHORTEST} can be "
                           f"guessed; make one: {MAKE}")
    if file is None and _typed("the same again: ") != password:
        raise SharingError("the two passwords differ; nothing was written")
    return password


def known_password(file: str | None) -> str:
    """Return the password of an existing archive, from `file`, or from the terminal if `file` is None."""
    return _from_file(file) if file is not None else _typed("password of the archive: ")


def _from_file(file: str) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise SharingError(f"--password-file {file} cannot be read ({getattr(error, 'strerror', None) or 'no text'}); make one: "
                           f"{MAKE}") from None
    return _plain(text, f"--password-file {file}")


def _typed(question: str) -> str:
    if not sys.stdin.isatty():
        raise SharingError("no password: there is no terminal to ask on; give --password-file FILE, and make one: " + MAKE)
    return _plain(getpass.getpass(question), "the password")


def _plain(password: str, what: str) -> str:
    """Return `password`. SharingError if it is empty, or has other characters than printable ASCII, which unpacking programs
    encode differently; `what` names the password in the message."""
    if not password or not password.isascii() or not password.isprintable():
        raise SharingError(f"{what} must be one line of letters, digits and signs of ASCII; make one: {MAKE}")
    return password

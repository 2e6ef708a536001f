"""Reads and writes an AES-256 zip of the format AE-2 (https://www.winzip.com/en/support/aes-encryption/), which 7-Zip, bsdtar and
others open. Each member is authenticated (HMAC-SHA1, 80 bits). Names and sizes of the members can be read without the
password."""

import contextlib
import shutil
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from routed_rl.errors import SharingError

MISSING = "the library for encrypted zips is not installed; pip install 'routed-rl[share]'"


def library() -> Any:
    """Import pyzipper and return it. If it is missing, SharingError names the command that installs it."""
    try:
        import pyzipper
    except ImportError:
        raise SharingError(MISSING) from None
    return pyzipper


@contextlib.contextmanager
def writing(path: Path, password: str) -> Iterator[Any]:
    """Yield a new zip at `path`, whose method `writestr(name, data)` adds an encrypted member."""
    zips = library()
    with open(path, "wb") as file:
        archive = zips.AESZipFile(file, "w", compression=zips.ZIP_DEFLATED, encryption=zips.WZ_AES)
        archive.setpassword(password.encode())
        try:
            yield archive
            archive.close()
        except BaseException:
            archive.fp = None  # otherwise it tries to close a member that could not be written, and prints a traceback
            raise


class Archive:
    """An existing encrypted zip. SharingError if it is damaged, or if a member would be written outside of the output folder."""

    def __init__(self, path: Path, password: str) -> None:
        self.path, self._zips = path, library()
        try:
            self._zip = self._zips.AESZipFile(path)
        except (self._zips.BadZipFile, ValueError, NotImplementedError):
            raise SharingError(f"{path} is no zip, or its end is missing; give the file that `routed-rl share` wrote") from None
        self._zip.setpassword(password.encode())
        members = [member for member in self._zip.infolist() if not _is_folder(member)]
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            raise SharingError(f"{path} has two members of one name; it was not written by `routed-rl share`")
        for member in self._members.values():
            self._refuse(member)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    names = property(lambda self: list(self._members))

    def size(self, name: str) -> int:
        """Return the size in bytes that the archive declares for a member."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """Read a member and check its authentication."""
        try:
            return self._zip.read(self._members[name])
        except RuntimeError:
            raise SharingError(f"wrong password for {self.path}, or its first bytes are damaged; nothing was written") from None
        except (self._zips.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError):
            raise SharingError(f"{self.path} is damaged: {name} does not have the hash that it was written with; nothing was "
                               "written. Get it anew") from None

    def require_space(self, folder: Path) -> None:
        """Raise SharingError if the disk of `folder` has no space for the members."""
        there = next(each for each in folder.absolute().parents if each.exists())
        if (wanted := sum(map(self.size, self._members))) > (free := shutil.disk_usage(there).free):
            raise SharingError(f"{self.path} unpacks to {wanted / 1e6:.3g} MB, and {there} has {free / 1e6:.3g} MB left; free "
                               "some")

    def _refuse(self, member: Any) -> None:
        name = PurePosixPath(member.filename)
        outside = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in "".join(name.parts[:1])
        outside = outside or str(name) != member.filename  # behind `data/`, the rest of `data//x` is an absolute path
        if outside or "\0" in member.orig_filename or stat.S_ISLNK(member.external_attr >> 16):
            raise SharingError(f"{self.path} has the member {member.filename!r}, which would be written outside of the folder; "
                               "it was not written by `routed-rl share`, and nothing was unpacked")
        if not member.flag_bits & 1 or member.wz_aes_version is None:
            raise SharingError(f"{self.path} has the member {member.filename!r}, which is not encrypted with AES; it was not "
                               "written by `routed-rl share`")


def _is_folder(member: Any) -> bool:
    """Whether a member only names a folder, as 7-Zip and others write for each. It is not unpacked."""
    return member.filename.endswith("/") and not member.file_size

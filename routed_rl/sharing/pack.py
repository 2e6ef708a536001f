"""The verb `share` packs transcripts into an encrypted archive, in a folder for a static host. The verb `unshare` unpacks
them."""

import hashlib
import json
from pathlib import Path

from routed_rl import __version__, console
from routed_rl.artifacts import check_above, replacing
from routed_rl.artifacts.whole import LARGEST
from routed_rl.canary import FILE, KEY
from routed_rl.errors import SharingError, command
from routed_rl.shapes import fits
from routed_rl.sharing import archive, password
from routed_rl.sharing.archive import Archive
from routed_rl.sharing.gather import Gathered, gather
from routed_rl.sharing.kinds import KINDS
from routed_rl.sharing.site import ARCHIVE, README, TERMS, Notice, documents, write_site

DATA, MANIFEST = "data/", "manifest.json"
BESIDE = (MANIFEST, FILE, TERMS, README)
"""Members of the archive that are not data."""
SHOWN = 12


def share(target: str, out: str, password_file: str | None, notice: Notice) -> Path:
    """Write the site for `target`, a run or another folder, to `out`, whole or not at all. SharingError, before anything is read,
    if the output exists or the password cannot be read."""
    folder, site = Path(target).expanduser(), _new(out)
    if not folder.is_dir():
        raise SharingError(f"{target} is no folder; give a run, or a folder of {', '.join(KINDS)}")
    if site.resolve().is_relative_to(folder.resolve()):
        raise SharingError(f"--out {out} lies inside of {target}, which is shared; give a folder elsewhere")
    archive.library()
    secret = password.new_password(password_file, folder)
    found = gather(folder)
    megabytes = sum(file.size for file in found.files) / 1e6
    _say(found, megabytes, notice)
    files = documents(notice, found.canary, f"{len(found.files)} files, {megabytes:.1f} MB")
    with replacing(site) as partial:
        partial.mkdir(parents=True)
        _pack(partial / ARCHIVE, secret, found, files)
        write_site(partial, files)
    console.say(f"site: {site}, to be put on a static host as it is; {ARCHIVE} is encrypted (AES-256). What crawlers get: "
                f"{command('share', '--check', out)}")
    return site


def unshare(file: str, out: str, password_file: str | None) -> Path:
    """Unpack `file`, which is an archive or the folder of a site, into the new folder `out`, and remove the canaries.
    SharingError, and nothing is written, if a file does not have the hash with which it was shared."""
    path, folder = Path(file).expanduser(), _new(out)
    path = path / ARCHIVE if path.is_dir() else path
    if not path.is_file():
        raise SharingError(f"{path} does not exist; give the archive that `routed-rl share` wrote, or the folder around it")
    archive.library()
    with Archive(path, password.known_password(password_file)) as packed:
        manifest = _manifest(packed)
        packed.require_space(folder)
        with replacing(folder) as partial, console.progress("unpacking", "files") as advance:
            partial.mkdir(parents=True)
            for number, (name, digest) in enumerate(manifest.items(), 1):
                data = KINDS[Path(name).suffix].unmark(packed.read(DATA + name))
                if hashlib.sha256(data).hexdigest() != digest:
                    raise SharingError(f"{path} is damaged: {name} does not have the hash that it was shared with; nothing was "
                                       "written. Get it anew")
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(data)
                advance(number, len(manifest))
    console.say(f"unpacked: {folder}, {len(manifest)} files as they were before they carried canaries; share them anew to hand "
                "them on")
    return folder


def _new(out: str) -> Path:
    path = Path(out).expanduser().absolute()
    if path.exists():
        raise SharingError(f"--out {out} exists; give another folder")
    check_above(path, f"--out {out}")
    return path


def _pack(path: Path, secret: str, found: Gathered, files: dict[str, str]) -> None:
    manifest = {"written_by": f"routed_rl {__version__}", "canary": found.canary, "column": KEY,
                "sha256_without_canary": {file.source.name: file.sha256 for file in found.files}}
    with archive.writing(path, secret) as packed, console.progress("packing", "files") as advance:
        packed.writestr(MANIFEST, json.dumps(manifest, indent=2) + "\n")
        for name in BESIDE[1:]:
            packed.writestr(name, files[name])
        for number, (file, marked) in enumerate(found.marked(), 1):
            packed.writestr(DATA + file.source.name, marked)
            advance(number, len(found.files))


def _manifest(packed: Archive) -> dict[str, str]:
    """Return the SHA-256 of each file without its canary, by the file's name. SharingError if the archive's manifest does not
    match its members."""
    problem = f"{packed.path} was not written by `routed-rl share`: "
    if MANIFEST not in packed.names or packed.size(MANIFEST) > LARGEST:
        raise SharingError(f"{problem}it has no {MANIFEST}; open it with 7z")
    text = packed.read(MANIFEST)
    try:
        found = json.loads(text)["sha256_without_canary"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not fits(found, dict[str, str]):
        raise SharingError(f"{problem}its {MANIFEST} does not say what is in it")
    assert isinstance(found, dict)
    named = {DATA + name for name in found if Path(name).suffix in KINDS} | set(BESIDE)
    if wrong := sorted(named ^ set(packed.names)):
        raise SharingError(f"{problem}{wrong[0]} is not both in it and in its {MANIFEST}")
    return found


def _say(found: Gathered, megabytes: float, notice: Notice) -> None:
    """Print which files are shared, which are not and why, and the facts that the page will show."""
    private, anew = sum(file.private for file in found.files), sum(file.anew for file in found.files)
    console.say(f"shared: {len(found.files)} files, {megabytes:.1f} MB; secrets and places taken out: {private}"
                + (f"; written anew, with the same rows: {anew}" if anew else ""))
    for name, reason in found.left_out[:SHOWN]:
        console.say(f"left out: {name} {reason}")
    if (more := len(found.left_out) - SHOWN) > 0:
        console.say(f"left out: {more} more files")
    console.say(f"contact: {notice.contact} (--contact); terms: {notice.terms or 'ours'} (--terms FILE); Turnstile: "
                f"{notice.site_key or 'none'} (--site-key KEY); canary: {found.canary}")

"""The option `share --check` sends two crawlers to a site, a polite and a rude one. If the site is a folder on this machine, a
local server serves it to them."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from routed_rl import console
from routed_rl.errors import CheckFailed, SharingError
from routed_rl.sharing.crawl import Document, Site, polite, readable, rude
from routed_rl.sharing.site import PUBLIC

HEADERS = ("x-robots-tag", "tdm-reservation")


def check(target: str) -> None:
    """Print what the crawlers can get from `target`, the address of a site or its folder. CheckFailed if the polite crawler may
    fetch anything, or if the rude one can read data."""
    with served(target) as (url, known):
        site = Site(url)
        found = rude(site, known)
        if not found:
            raise SharingError(f"{target} has no page; give the address that has index.html, or its folder")
        fetched = {agent: paths for agent, paths in polite(site, found).items() if paths}
    leaks = {document.path: problem for document in found if (problem := readable(document, PUBLIC))}
    console.table("what a rude crawler gets", ["address", "bytes", "what it can read"],
                  [[each.path, len(each.body), leaks.get(each.path) or _kind(each)] for each in found])
    shown = "; ".join(f"{len(paths)} of {len(found)} as {agent}" for agent, paths in fetched.items())
    console.say(f"a polite crawler fetches: {shown or 'nothing'}")
    _say_marks(found, target)
    if leaks or fetched:
        path, problem = next(iter(leaks.items()), ("", ""))
        raise CheckFailed(f"{target}: anybody can read {path}: {problem}; share it with `routed-rl share`" if leaks else
                          f"{target}: no robots.txt at the root of its host forbids to fetch it; give the site a host of its own")


def _kind(document: Document) -> str:
    return "nothing: it is encrypted" if document.body.startswith(b"PK") else "no data"


def _say_marks(found: list[Document], target: str) -> None:
    """Print by which marks the pages and the server's headers forbid crawling and text mining, and which headers are missing."""
    pages = [document for document in found if document.page]
    noai = sum(b"noai" in document.body for document in pages)
    tdm = any(document.path == ".well-known/tdmrep.json" for document in found)
    console.say(f"pages with noai: {noai} of {len(pages)}; tdmrep.json: {'yes' if tdm else 'no'}")
    if target.startswith("http"):
        missing = [name for name in HEADERS if name not in found[0].headers]
        console.say(f"headers that the host does not send: {', '.join(missing) or 'none'}")


@contextlib.contextmanager
def served(target: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the address of the site `target`, and, if `target` is a folder, the names of its files. A folder is served on this
    machine inside the block."""
    if target.startswith(("http://", "https://")):
        yield target, ()
        return
    folder = Path(target).expanduser()
    if not folder.is_dir():
        raise SharingError(f"--check {target} is neither a folder nor an address that begins with http:// or https://")
    names = tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", names
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

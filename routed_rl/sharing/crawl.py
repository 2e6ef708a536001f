"""Two crawlers that test whether a site keeps its data from crawlers. The polite one obeys robots.txt. The rude one follows every
link, and every string that looks like a file's name, and reads all documents that it gets. Not covered: pages that a script would
make, other hosts, guessed passwords."""

import http.client
import re
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import quote, urldefrag, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from routed_rl.errors import SharingError

AGENTS = ("*", "GPTBot", "ClaudeBot", "CCBot", "Google-Extended", "Bytespider")
GUESSES = ("index.html", "robots.txt", "sitemap.xml", "data.zip", "README.md", ".well-known/tdmrep.json")
"""Names of files that a crawler requests without having seen a link to them."""
LARGEST, MOST, TIMEOUT_S = 2**31, 500, 30
"""Limits: bytes of a document, number of documents, and seconds of waiting for a server."""
SAFE = "%/:?#[]@!$&'()*+,;=~-._"
"""Characters of a link that are not quoted."""
NAMED = re.compile(r"[\"']([\w./-]+\.(?:zip|7z|gz|parquet|jsonl?|csv|txt|md|html?))[\"']")


@dataclass(frozen=True)
class Document:
    """A server's answer for one address. `path` is relative to the site's address."""

    path: str
    body: bytes
    headers: dict[str, str]

    @property
    def page(self) -> bool:
        return "html" in self.headers.get("content-type", "")


class Site:
    """A site at an address. `opener` uses no proxy if the site is on this machine."""

    def __init__(self, url: str) -> None:
        self.url = url if url.endswith("/") else url + "/"
        local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        self.opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * local)
        self.opener.addheaders = [("User-Agent", "routed-rl share --check")]

    def get(self, url: str) -> Document | None:
        """Fetch a document; None if the server has none at this address. SharingError if the server does not answer."""
        try:
            with self.opener.open(url, timeout=TIMEOUT_S) as answer:
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Document(url.removeprefix(self.url) or "/", answer.read(LARGEST), headers)
        except urllib.error.HTTPError:
            return None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise SharingError(f"{url} does not answer ({why}); give the address of the site, or its folder") from None

    def robots(self) -> RobotFileParser:
        """Fetch the site's robots.txt. Only the one at the root of its host counts."""
        found, rules = self.get(urljoin(self.url, "/robots.txt")), RobotFileParser()
        rules.parse(found.body.decode(errors="replace").splitlines() if found else [])
        return rules


def rude(site: Site, known: tuple[str, ...] = ()) -> list[Document]:
    """Fetch every document to which the first page leads, directly or indirectly, and the files whose names are in `GUESSES` and
    `known`."""
    waiting = [site.url, *(urljoin(site.url, quote(name)) for name in (*GUESSES, *known))]
    seen, found = set[str](), list[Document]()
    while waiting and len(found) < MOST:
        url = waiting.pop(0)
        if url in seen or not url.startswith(site.url):
            continue
        seen.add(url)
        if document := site.get(url):
            found.append(document)
            waiting += links(url, document)
    return found


def polite(site: Site, documents: list[Document]) -> dict[str, tuple[str, ...]]:
    """Return, for each crawler's name in `AGENTS`, the paths of those of `documents` that a crawler of this name may fetch if it
    obeys robots.txt."""
    rules = site.robots()
    return {agent: tuple(document.path for document in documents if document.path != "robots.txt"
                         and rules.can_fetch(agent, urljoin(site.url, document.path.lstrip("/")))) for agent in AGENTS}


def links(url: str, document: Document) -> list[str]:
    """Return the addresses that a document names in tags and in strings of scripts. What is no address is left out."""
    if not document.page:
        return []
    text, reader = document.body.decode(errors="replace"), _Links()
    reader.feed(text)
    found = list[str]()
    for each in (*reader.found, *NAMED.findall(text)):
        with suppress(ValueError):  # such as http://[x
            found.append(urldefrag(urljoin(url, quote(each, safe=SAFE)))[0])
    return found


def readable(document: Document, public: set[str]) -> str | None:
    """Describe the data that anybody can read in a document. Returns None if there are none: for ciphertext, and for the site's
    own files, whose paths are in `public`, unless rows of data have got into them."""
    body = document.body
    if body.startswith(b"PK"):
        return _in_zip(body)
    if document.path in ({"/"} | public) and not body.startswith(b"PAR1"):
        return "rows of JSON" if re.search(rb"^\s*\{\"\w+\": .{200}", body, re.MULTILINE) else None
    kind = "a parquet file" if body.startswith(b"PAR1") else "a page" if document.page else "a file that is not encrypted"
    return f"{kind} of {len(body)} bytes"


def _in_zip(body: bytes) -> str | None:
    import zipfile

    try:
        members = zipfile.ZipFile(BytesIO(body)).infolist()
    except (zipfile.BadZipFile, ValueError):
        return "a zip that is damaged"
    plain = [member.filename for member in members if not member.flag_bits & 1]
    weak = [member.filename for member in members if member.flag_bits & 1 and member.compress_type != 99]
    if plain:
        return f"a zip with {len(plain)} of {len(members)} members in plain text, such as {plain[0]}"
    return f"a zip with the old cipher, which is broken (ZipCrypto), as of {weak[0]}" if weak else None


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("href", "src", "action") and value]

"""Writes the folder for a static host: one page, files that address crawlers, and the archive. No page has a line of the data."""

import html
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from routed_rl.artifacts.whole import sha256
from routed_rl.canary import FILE, KEY
from routed_rl.errors import SharingError

TEMPLATES = Path(__file__).with_name("pages")
ARCHIVE, TERMS, README, SUMS = "data.zip", "terms.txt", "README.md", "SHA256SUMS"
PLACES = {"index.html": "index.html", "robots.txt": "robots.txt", "ai.txt": "ai.txt", "tdmrep.json": ".well-known/tdmrep.json",
          "headers.txt": "_headers", "vercel.json": "vercel.json", TERMS: TERMS, README: README}
"""Where each template is written in the site. `_headers` is read by Cloudflare Pages and Netlify, `vercel.json` by Vercel."""
PUBLIC = {*PLACES.values(), FILE, SUMS, ".nojekyll"}
"""Every file of a site except the archive."""
NOBODY = "whoever gave you this address"
TURNSTILE = """<script src="https://challenges.cloudflare.com/turnstile/v0/api.js" async defer></script>
<script>
  function passed() {
    const link = document.createElement("a");
    [link.href, link.textContent] = [["data", "zip"].join("."), "Download the archive"];
    document.getElementById("download").replaceChildren(link);
  }
</script>"""


@dataclass(frozen=True)
class Notice:
    """Facts for the page that only the person who shares the data knows. `terms`: a file that replaces the default terms;
    `site_key`: a key of Cloudflare Turnstile."""

    contact: str = NOBODY
    terms: str | None = None
    site_key: str | None = None

    def __post_init__(self) -> None:
        if not self.contact.strip() or not self.contact.isprintable():
            raise SharingError(f"--contact {self.contact!r} is no line of text; give a name, an address, or leave it out")
        if self.site_key is not None and not re.fullmatch(r"[0-9A-Za-z_-]{3,100}", self.site_key):
            raise SharingError(f"--site-key {self.site_key!r} is no Turnstile key; copy it from its page, or leave it out")
        if self.terms is not None:
            self.terms_text({})

    def terms_text(self, facts: dict[str, str]) -> str:
        """Return the text of the terms of use, which are in the archive too. `facts` fills the placeholders of the default terms.
        SharingError if the file `self.terms` cannot be read."""
        if self.terms is None:
            return _filled(TERMS, facts)
        try:
            return Path(self.terms).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SharingError(f"--terms {self.terms} cannot be read ({error}); give a file of text, or leave it out") from None


def documents(notice: Notice, canary: str, what: str) -> dict[str, str]:
    """Return the text of every file of the site except the archive, by its path. `what` says how many files the archive has and
    how large they are."""
    facts = {"contact": notice.contact, "canary": canary, "what": what, "key": KEY}
    found = {place: _filled(template, facts) for template, place in PLACES.items() if template not in (TERMS, "index.html")}
    page = {name: html.escape(value) for name, value in facts.items()} | _download(notice.site_key)
    return found | {"index.html": _filled("index.html", page), TERMS: notice.terms_text(facts), FILE: f"{canary}\n",
                    ".nojekyll": ""}


def write_site(folder: Path, files: dict[str, str]) -> None:
    """Write `files`, {path: text}, into `folder`, the folder of the site, and a file with the hash of the data archive `ARCHIVE`.
    The archive must be in `folder` already."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / SUMS).write_text(f"{sha256(folder / ARCHIVE)}  {ARCHIVE}\n", encoding="utf-8")


def _download(site_key: str | None) -> dict[str, str]:
    """Return the parts of the page that lead to the archive, by their names in the page's template. If `site_key` is None, the
    page shows the link to the archive; otherwise it shows Turnstile's widget, and the link only to those who pass its test."""
    if site_key is None:
        return {"turnstile_script": "<!-- Turnstile: share again with --site-key KEY -->",
                "download": f'<p><a href="{ARCHIVE}" rel="nofollow">Download the archive</a></p>'}
    return {"turnstile_script": TURNSTILE, "download": f'<div id="download"><div class="cf-turnstile" data-sitekey="{site_key}" '
                                                       'data-callback="passed"></div></div>'}


def _filled(template: str, facts: dict[str, str]) -> str:
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return Template(text).substitute(facts) if facts else text

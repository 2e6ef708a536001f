"""Transcripts of hacking models for other researchers and not for crawlers: an encrypted archive, a page, a canary in each row.
No torch here."""

from routed_rl.sharing.check import check
from routed_rl.sharing.pack import share, unshare
from routed_rl.sharing.site import Notice

__all__ = ["Notice", "check", "share", "unshare"]

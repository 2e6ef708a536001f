"""Shares transcripts of hacking models with other researchers and keeps them from crawlers: an encrypted archive, a page, and a
canary in each row. torch is not imported here."""

from routed_rl.sharing.check import check
from routed_rl.sharing.pack import share, unshare
from routed_rl.sharing.site import Notice

__all__ = ["Notice", "check", "share", "unshare"]

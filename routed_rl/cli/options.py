"""What several verbs share of their options."""

from __future__ import annotations

OVERRIDES = "settings as KEY=VALUE (routing.mode=observe), or a group's choice (env=six_secure)"


def names(lists: list[str] | None) -> list[str] | None:
    """Of an option that takes NAME[,NAME] and may be repeated; None where it was not given."""
    return None if lists is None else [name.strip() for each in lists for name in each.split(",") if name.strip()]

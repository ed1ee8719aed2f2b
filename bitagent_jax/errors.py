"""Errors that tell the user what was given, what is allowed and what they probably meant."""

import difflib
from collections.abc import Iterable

LONG = 40  # names; a longer table is not listed whole


def unknown(kind: str, given: str, allowed: Iterable[str]) -> ValueError:
    """Build the error for a name that is not in a table.

    Args:
        kind: what the name stands for, for example ``"task"``.
        given: the name as the user wrote it.
        allowed: every name the table holds.

    Returns:
        A ``ValueError`` (not raised) naming the given value, its nearest match and the allowed values (of a long
        table the nearest five).
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(given), allowed, n=5, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = allowed if len(allowed) <= LONG else near
    listing = f" {'Allowed' if shown is allowed else 'Near it'}: {', '.join(shown)}." if shown else ""
    return ValueError(f"unknown {kind} {given!r}.{hint}{listing}")

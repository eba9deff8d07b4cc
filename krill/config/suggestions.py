"""The closest valid name to one that does not exist, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def find_closest_name(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that is most similar to `name`, or to its last part if both are dotted keys, or None."""
    names = list(dict.fromkeys(candidates))
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if matches:
        return matches[0]
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(names)}
    last_part = name.rsplit(".", 1)[-1]
    if last_part in by_last_part:
        return by_last_part[last_part]
    matches = difflib.get_close_matches(last_part, by_last_part, n=1, cutoff=0.7)
    return by_last_part[matches[0]] if matches else None


def suggest(name: str, candidates: Iterable[str], template: str = "{}", max_listed: int | None = None) -> str:
    """Returns "Did you mean <the closest candidate>? Available: <all candidates>", the end of an error message.

    `template`: the form of the closest candidate, such as model={}. `max_listed`: the number of candidates to list.
    """
    names = list(dict.fromkeys(candidates))
    closest = find_closest_name(name, names)
    question = f"Did you mean {template.format(closest)}? " if closest else ""
    more = ["…"] if len(names) > (max_listed or len(names)) else []
    return f"{question}Available: {', '.join([*names[:max_listed], *more])}"

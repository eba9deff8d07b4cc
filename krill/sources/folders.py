"""Lists the files of a folder, and what in it cannot be listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MAX_LISTED_PROBLEMS = 15
"""Maximum number of problems in a message."""


def walk_folder(folder: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder at and below `folder`, with the names of its files, except hidden ones and lost+found.

    Links to folders are followed; a folder that is reached in several ways is visited once, not below a link if
    possible. Adds each folder that cannot be read to `problems`.
    """
    seen: set[tuple[int, int]] = set()
    roots = [folder]
    for root in roots:  # grows by the links that are found
        links: list[Path] = []
        for parent, names, file_names in os.walk(
            root, onerror=lambda error: problems.append(_describe(error))
        ):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                names.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            names[:] = [name for name in names if not (name.startswith(".") or name == "lost+found")]
            links += [Path(parent, name) for name in names if os.path.islink(os.path.join(parent, name))]
            yield parent, [name for name in file_names if not name.startswith(".")]
        roots += sorted(links)


def list_folder(folder: Path, problems: list[str]) -> list[Path]:
    """Returns all files below a folder that `walk_folder` visits, sorted.

    Adds to `problems` each folder that cannot be read and each link to nothing.
    """
    files = [Path(parent, name) for parent, names in walk_folder(folder, problems) for name in names]
    for path in files:
        if os.path.islink(path) and not os.path.exists(path):
            problems.append(describe_broken_link(path))
        elif not os.path.exists(path):
            problems.append(f"{path}: cannot be read; make its folder readable (chmod u+rx)")
    return sorted(path for path in files if os.path.exists(path))


def describe_broken_link(path: Path) -> str:
    """Returns the message for a link whose target does not exist."""
    return f"{path}: is a link to nothing ({os.readlink(path)}); restore its target or remove the link"


def _describe(error: OSError) -> str:
    return f"{error.filename}: cannot be listed ({error.strerror}); make it readable (chmod u+rx) or move it"

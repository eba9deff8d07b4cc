"""Lists the files of a folder, and what in it cannot be listed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
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
            root, onerror=lambda error: problems.append(_describe_unreadable(error.filename, error.strerror))
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
    problems += find_broken_links(files)
    for path in files:
        if not os.path.lexists(path):
            problems.append(f"{path}: cannot be read; make its folder readable (chmod u+rx)")
    return sorted(path for path in files if os.path.exists(path))


def find_unreadable(paths: Iterable[str]) -> list[str]:
    """Returns a message for each path that is a link to nothing or a folder that cannot be listed."""
    paths = list(paths)
    return [
        *find_broken_links(paths),
        *(
            _describe_unreadable(path, os.strerror(errno.EACCES))
            for path in paths
            if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK)
        ),
    ]


def find_broken_links(paths: Iterable[Path | str]) -> list[str]:
    """Returns a message for each path that is a link whose target does not exist."""
    return [
        describe_broken_link(Path(path))
        for path in paths
        if os.path.islink(path) and not os.path.exists(path)
    ]


def describe_broken_link(path: Path) -> str:
    """Returns the message for a link whose target does not exist."""
    return f"{path}: is a link to nothing ({os.readlink(path)}); restore its target or remove the link"


def _describe_unreadable(folder: str, reason: str | None) -> str:
    return f"{folder}: cannot be listed ({reason}); make it readable (chmod u+rx) or move it"

"""The name of krill's distribution, and the commands that install its extras."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "krill-lm"
"""The name that pip knows; the package index has another project that is called krill."""


def format_install_command(extra: str) -> str:
    """Returns the pip command that adds an extra to this installation.

    A checkout is named by its folder, an installed wheel by the name of the distribution.
    """
    checkout = _find_checkout()
    if checkout is None:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    folder = "." if checkout == Path.cwd() else str(checkout)
    return f"pip install -e {shlex.quote(f'{folder}[{extra}]')}"


def _find_checkout() -> Path | None:
    """Returns the folder of the checkout that is installed with -e, or imported without being installed, or None."""
    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        folder = Path(__file__).resolve().parents[1]
        return folder if (folder / "pyproject.toml").is_file() else None
    is_editable = origin.get("dir_info", {}).get("editable", False)
    return Path(unquote(urlsplit(origin["url"]).path)) if is_editable else None

"""Fixtures for the commands that are called in this process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, without the variables that change where krill looks or how it prints."""
    monkeypatch.chdir(tmp_path)
    for name in ("KRILL_OUTPUTS", "KRILL_CONF", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path

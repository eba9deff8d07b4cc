"""Extras: the command that installs one names this installation, and the versions of constraints.txt fit together."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import krill
from krill import extras
from krill.runs.record import read_versions

HOUSE = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (HOUSE / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
}
KNOWN_REQUIREMENTS = {"trackio": ["pillow<13"], "flash-attn": ["torch", "einops"]}
"""Requirements of packages that CI does not install; .ci/resolve asks the index for all of them."""


def install(monkeypatch: pytest.MonkeyPatch, direct_url: dict[str, Any] | None) -> None:
    """Pretends that krill is installed from `direct_url`; None: from the index."""

    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if direct_url is None else json.dumps(direct_url)

    monkeypatch.setattr(extras, "distribution", lambda name: Installed())


@pytest.mark.parametrize(
    "direct_url",
    [
        None,
        {"url": "file:///tmp/krill_lm-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///tmp/krill", "dir_info": {}},
        {"url": "https://example.com/krill.git", "vcs_info": {"vcs": "git"}},
    ],
)
def test_an_installed_krill_is_extended_by_its_name(
    direct_url: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, direct_url)
    assert extras.format_install_command("wandb") == "pip install 'krill-lm[wandb]'"


def test_a_checkout_is_extended_by_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "내 krill"
    folder.mkdir()
    install(monkeypatch, {"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert extras.format_install_command("wandb") == f"pip install -e '{folder}[wandb]'"
    monkeypatch.chdir(folder)
    assert extras.format_install_command("wandb") == "pip install -e '.[wandb]'"


def test_a_checkout_without_metadata_has_an_install_command_and_a_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raise_not_found(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", raise_not_found)
    monkeypatch.setattr("importlib.metadata.version", raise_not_found)
    monkeypatch.chdir(HOUSE)
    assert extras.format_install_command("fast") == "pip install -e '.[fast]'"
    assert krill.__version__ == "0+unknown"
    assert read_versions("krill", "no such package") == {"krill": "0+unknown"}


def test_the_distribution_has_the_name_that_messages_use() -> None:
    assert PROJECT["name"] == extras.DISTRIBUTION
    foreign = re.compile(r"(?<![\w-])krill\[[a-z]")  # another project on the package index
    files = [HOUSE / "README.md", HOUSE / "pyproject.toml", *(HOUSE / "docs").glob("*.md")]
    files += [*(HOUSE / "krill").rglob("*.py"), *(HOUSE / "conf").rglob("*.yaml")]
    assert [str(file) for file in files if foreign.search(file.read_text("utf-8"))] == []


def test_every_requirement_of_an_extra_has_a_version_in_the_constraints() -> None:
    texts = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    requirements = [Requirement(text) for text in texts]
    assert [str(one) for one in requirements if not is_satisfied(one, one.name != PROJECT["name"])] == []
    own = next(one for one in requirements if one.name == PROJECT["name"])
    assert own.extras <= PROJECT["optional-dependencies"].keys()


def test_the_constraints_fit_together() -> None:
    conflicts = [
        f"{name} needs {requirement}, constraints.txt has {PINS[canonicalize_name(requirement.name)]}"
        for name, requirement in list_known_requirements()
        if not is_satisfied(requirement, must_be_pinned=False)
    ]
    assert conflicts == []


def list_known_requirements() -> Iterator[tuple[str, Requirement]]:
    """Yields the requirements of the pinned packages: of those that are installed here, and `KNOWN_REQUIREMENTS`."""
    for name, texts in KNOWN_REQUIREMENTS.items():
        yield from ((name, Requirement(text)) for text in texts)
    for installed in distributions():
        name = canonicalize_name(installed.metadata["Name"] or "")
        if PINS.get(name) == installed.version:
            yield from ((name, Requirement(text)) for text in installed.requires or [] if "extra" not in text)


def is_satisfied(requirement: Requirement, must_be_pinned: bool) -> bool:
    pin = PINS.get(canonicalize_name(requirement.name))
    applies = requirement.marker is None or requirement.marker.evaluate()
    if pin is None or not applies:
        return not must_be_pinned or not applies
    return requirement.specifier.contains(pin, prereleases=True)

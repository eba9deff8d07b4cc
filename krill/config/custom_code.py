"""A person's own code, named in a YAML: `build: my_file.py:function` or `build: package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from krill.errors import UsageError


def import_custom_function(reference: str) -> Callable[..., Any]:
    """The function that `reference` names. Raises UsageError where it is not there."""
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise UsageError(f"{reference}: write file.py:function or package.module:function")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place, reference)
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise UsageError(f"{reference}: {place} has no function '{name}'") from error


def hash_custom_function(reference: str) -> str:
    """Hex SHA-256 of the source file: code that makes a result is part of its identity."""
    function = inspect.unwrap(import_custom_function(reference))
    source = (
        inspect.getsourcefile(function) if inspect.isfunction(function) or inspect.isclass(function) else None
    )
    if source is None:
        raise UsageError(
            f"{reference}: has no source file in Python; name a function of your own that calls it"
        )
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def get_snapshot_path(file: Path, code: Path) -> Path:
    """Where a file of the person's own is in `code`, a copy of all code that a job runs."""
    return code / "own" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}-{file.name}"


def _import_file(file: Path) -> ModuleType:
    if code := os.environ.get("KRILL_CODE"):
        copied = get_snapshot_path(file, Path(code))
        file = copied if copied.is_file() else file
    if not file.is_file():
        raise UsageError(f"{file}: no such file (seen from {Path.cwd()})")
    name = f"krill_own_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _import_module(place: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name != place and not place.startswith(f"{error.name}."):
            raise  # it is there, and imports what is not
        raise UsageError(
            f"{reference}: no module '{place}'; write file.py:function or package.module:function"
        ) from error

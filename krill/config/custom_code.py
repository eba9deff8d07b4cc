"""The user's own code, named in a YAML: `build: my_file.py:function` or `build: package.module:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from krill.config.paths import relative_path
from krill.errors import UsageError, get_first_line


def import_custom_function(reference: str) -> Callable[..., Any]:
    """Imports and returns the function that `reference` names.

    Raises:
        UsageError: `reference` has another form, its file, module or function does not exist, or it cannot be
            imported.
    """
    module_name, _, function_name = reference.rpartition(":")
    if not module_name or not function_name:
        raise UsageError(f"{reference}: use file.py:function or package.module:function")
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name))
    else:
        module = _import_module(module_name, reference)
    try:
        function = getattr(module, function_name)
    except AttributeError as error:
        raise UsageError(f"{reference}: {module_name} has no function '{function_name}'") from error
    if not callable(function):
        raise UsageError(f"{reference}: {function_name} is a {type(function).__name__}, not a function")
    return function


def hash_custom_function(reference: str) -> str:
    """Returns the hex SHA-256 of the source file of `reference`: code that makes a result is part of its identity.

    Raises UsageError for a function without a Python source file.
    """
    function = inspect.unwrap(import_custom_function(reference))
    source = (
        inspect.getsourcefile(function) if inspect.isfunction(function) or inspect.isclass(function) else None
    )
    if source is None:
        raise UsageError(f"{reference}: has no Python source file; use a function of your own that calls it")
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def build_custom_code_error(
    code: str, error: Exception | SystemExit, problem: str = "cannot be imported"
) -> UsageError:
    """Returns the error for code of the user that fails, with the file and the line.

    `code`: the file or the module.
    """
    file, line, message = code, None, get_first_line(error)
    if isinstance(error, SyntaxError):
        file, line, message = error.filename or code, error.lineno, error.msg
    else:
        frames = [
            (frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)
        ]
        for name, number in frames:
            if _is_custom(name):  # the innermost, which the user can change
                file, line = name, number
    path = relative_path(Path(file)) if Path(file).is_file() else file
    where = path if line is None else f"{path}:{line}"
    return UsageError(f"{where}: {problem}: {type(error).__name__}: {message}")


def get_snapshot_path(file: Path, snapshot: Path) -> Path:
    """Returns the path of a copy of the user's `file` in `snapshot`, a folder with all code that a job runs."""
    return (
        snapshot / "custom" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}-{file.name}"
    )


def _import_file(file: Path) -> ModuleType:
    """Imports `file`, or its copy in the snapshot that a job runs from ($KRILL_CODE)."""
    if snapshot := os.environ.get("KRILL_CODE"):
        copied = get_snapshot_path(file, Path(snapshot))
        file = copied if copied.is_file() else file
    if not file.is_file():
        raise UsageError(f"{file}: no such file (working directory: {Path.cwd()})")
    name = f"krill_custom_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, (Exception, SystemExit)):
                raise build_custom_code_error(str(file), error) from error
            raise
    return sys.modules[name]


def _import_module(name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name != name and not name.startswith(f"{error.name}."):
            raise build_custom_code_error(
                name, error
            ) from error  # it exists but imports a module that does not
        raise UsageError(
            f"{reference}: no module '{name}'; use file.py:function or package.module:function"
        ) from error
    except (Exception, SystemExit) as error:
        raise build_custom_code_error(name, error) from error


def _is_custom(file: str) -> bool:
    """Returns whether a source file is neither of Python, nor of krill, nor of an installed package."""
    path = Path(file).resolve()
    libraries = (Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parents[1])
    return (
        path.is_file()
        and not {"site-packages", "dist-packages"}.intersection(path.parts)
        and not any(path.is_relative_to(folder) for folder in libraries)
    )

"""CONTRIBUTING.md is true: its map is that of the packages, and each function of the walk calls the next."""

from __future__ import annotations

import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

HOUSE = Path(__file__).parents[1]
PAGE = (HOUSE / "CONTRIBUTING.md").read_text(encoding="utf-8")
STATION = re.compile(r"^\| \d+ \| `(?P<file>krill/[\w/]+\.py):(?P<function>[\w.]+)` \|", re.MULTILINE)
BY_LIBRARY = {
    ("run_hydra", "Session.__call__"): "session",
    ("Session.__call__", "run_task"): "run_task",
    ("run_command", "train"): "work",
    ("_build_trainer", "KrillTrainer.create_optimizer"): "KrillTrainer",
    ("build_optimizer", "Muon.step"): "Muon",
}
"""Calls through Hydra, transformers or an argument: the name under which the next station is handed over."""


def load_make_map() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_map", HOUSE / "docs" / "make_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_is_up_to_date() -> None:
    assert load_make_map().insert_map(PAGE) == PAGE, (
        "CONTRIBUTING.md is out of date; run: python docs/make_map.py"
    )


def find_function(file: str, qualified: str) -> ast.AST:
    """Returns the definition of a function or method; fails if there is none."""
    node: ast.AST = ast.parse((HOUSE / file).read_text(encoding="utf-8"))
    for name in qualified.split("."):
        found = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name == name
        ]
        assert found, f"{file} has no {qualified}"
        node = found[0]
    return node


def list_names(file: str, qualified: str) -> set[str]:
    """Names that a function uses, including those of the private functions of its file that it calls."""
    names, pending, seen = set(), [qualified], set()
    tree = ast.parse((HOUSE / file).read_text(encoding="utf-8"))
    private = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("_")
    }
    while pending:
        current = pending.pop()
        seen.add(current)
        used = {
            getattr(node, "id", None) or getattr(node, "attr", "")
            for node in ast.walk(find_function(file, current))
            if isinstance(node, (ast.Name, ast.Attribute))
        }
        names |= used
        pending += used & private - seen
    return names


def test_each_station_of_the_walk_calls_the_next() -> None:
    stations = [(match["file"], match["function"]) for match in STATION.finditer(PAGE)]
    assert len(stations) >= 12
    for (file, function), (_, following) in pairwise(stations):
        handed_over = BY_LIBRARY.get((function, following), following.rpartition(".")[2])
        assert handed_over in list_names(file, function), f"{file}:{function} does not call {following}"
    find_function(*stations[-1])

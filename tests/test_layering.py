"""The structure of the package: rooms import only downwards, and a public name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

KRILL = Path(__file__).parents[1] / "krill"
ROOMS = (
    "errors", "extras", "atomic", "checksum", "signals", "resources", "terminal", "tables", "figure", "config",
    "device_table", "manifest", "sources", "text", "tokenizer", "data", "models", "optim", "runs", "inference",
    "evaluation", "inspection", "serving", "training", "plan", "export", "launch", "sweep", "cli",
)  # fmt: skip
"""From the lowest room to the highest."""

SHARED_NAMES = {
    "main": "the entry point of a command",
    "run_task": "what Hydra calls for one configuration",
    "log": "the logger of krill",
    "VERSION": "the version of what a file writes or computes",
    "PHENOMENA": "the phenomena of a language",
}
"""Names that several files may define, all with the same meaning."""


def list_modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(KRILL.rglob("*.py")):
        name = ".".join(path.relative_to(KRILL).with_suffix("").parts).removesuffix(".__init__")
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def list_imports(tree: ast.Module) -> Iterator[str]:
    """Modules of krill that are imported anywhere in `tree`, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "krill":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("krill."):
            yield str(node.module).removeprefix("krill.")
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("krill.") for alias in node.names if alias.name.startswith("krill.")
            )


def test_rooms_import_only_downwards() -> None:
    upwards = [
        f"{path.relative_to(KRILL.parent)} imports krill.{imported}"
        for name, path, tree in list_modules()
        if (room := name.partition(".")[0]) in ROOMS
        for imported in list_imports(tree)
        if (below := imported.partition(".")[0]) in ROOMS and ROOMS.index(below) > ROOMS.index(room)
    ]
    assert upwards == []


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {name.partition(".")[0] for name, _, _ in list_modules()} - {"__init__", "__main__"}
    assert rooms == set(ROOMS)


def test_contributing_lists_the_rooms_in_this_order() -> None:
    page = (KRILL.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"{', '.join(ROOMS)}." in " ".join(page.split())


def list_public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_a_public_name_means_one_thing() -> None:
    defined = defaultdict(list)
    for name, _, tree in list_modules():
        type_variables = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and getattr(node.value.func, "id", "") == "TypeVar"
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for public in set(list_public_names(tree)) - type_variables - SHARED_NAMES.keys():
            if not public.startswith("_"):
                defined[public].append(name)
    assert {name: modules for name, modules in defined.items() if len(modules) > 1} == {}

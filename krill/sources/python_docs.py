"""The built-in source: the documentation that ships with CPython, about 2.8 MB of English text, read offline.

It consists of the topics of Python's help (`pydoc_data.topics`, chapters of the language reference) and the
docstrings of the standard library. Docstrings are read from the source files with `ast`: no module is imported,
because imports have side effects. Modules written in C have no source file and are omitted, except `builtins`,
which is always loaded.

The text is part of Python and is under the PSF license.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from krill.errors import UsageError

MAX_DOCUMENT_CHARACTERS = 4000
"""Approximate maximum length of a document; longer texts are cut between docstrings or paragraphs."""

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_NO_DOCS_MESSAGE = (
    "this Python has no documentation: the source files of its standard library are missing, as in stripped "
    "or zipped installations. Train on your own text: data=files data.paths=[text.jsonl]"
)


def read_python_docs() -> Iterator[str]:
    """Yields the documents, always in the same order; raises UsageError if this Python has none."""
    documents = _build_documents()
    if not documents:
        raise UsageError(_NO_DOCS_MESSAGE)
    yield from documents


@functools.cache
def fingerprint_python_docs() -> str:
    """Returns the hex xxh3_128 of Python's version and every source file (0.1 s: nothing is parsed)."""
    digest = xxhash.xxh3_128(f"{platform.python_implementation()} {platform.python_version()}".encode())
    for name, path in _list_modules():
        content = path.read_bytes()
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def require_python_docs() -> None:
    """Raises UsageError if this Python has no documentation."""
    if next(_iterate_modules(), None) is None:
        raise UsageError(_NO_DOCS_MESSAGE)


@functools.cache
def _build_documents() -> tuple[str, ...]:
    """Returns all documents; cached because both tokenizer and store read them, and parsing takes seconds."""
    texts = list(_read_topics())
    texts += _join_blocks(_extract_builtin_blocks())
    for name, path in _list_modules():
        texts += _join_blocks(_extract_module_blocks(name, path))
    return tuple(texts)


def _read_topics() -> Iterator[str]:
    """Yields the topics of Python's help, long ones cut between paragraphs."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        yield from _join_blocks([topics[name]])


def _list_modules() -> list[tuple[str, Path]]:
    """Returns (dotted name, source file) of the standard library's Python modules, without tests, sorted."""
    return sorted(_iterate_modules())


def _iterate_modules() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in sys.stdlib_module_names:
        single, package = root / f"{name}.py", root / name
        for path in [single] if single.is_file() else package.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if not _TEST_FOLDERS.intersection(parts[:-1]):
                yield ".".join(parts).removesuffix(".__init__"), path


def _extract_module_blocks(name: str, path: Path) -> Iterator[str]:
    """Yields heading and docstring of a module, its classes and functions, in source order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    if docstring := ast.get_docstring(tree):
        yield f"module {name}\n\n{docstring}"
    yield from _extract_nested_blocks(tree, f"{name}.")


def _extract_nested_blocks(parent: ast.AST, prefix: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if docstring := ast.get_docstring(node):
                yield f"{_format_heading(node, prefix)}\n\n{docstring}"
            yield from _extract_nested_blocks(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from _extract_nested_blocks(node, prefix)


def _format_heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {prefix}{node.name}({bases})" if bases else f"class {prefix}{node.name}"
    return f"def {prefix}{node.name}({ast.unparse(node.args)})"


def _extract_builtin_blocks() -> Iterator[str]:
    """Yields name and docstring of Python's built-in types, their public methods, and functions."""
    for name, value in sorted(vars(builtins).items()):
        if getattr(value, "__module__", None) != "builtins" or not (
            inspect.isclass(value) or inspect.isbuiltin(value)
        ):
            continue
        if docstring := inspect.getdoc(value):
            yield f"{name}\n\n{docstring}"
        for method, member in sorted(vars(value).items()) if inspect.isclass(value) else ():
            docstring = inspect.getdoc(member) if inspect.ismethoddescriptor(member) else None
            if docstring and not method.startswith("_"):
                yield f"{name}.{method}\n\n{docstring}"


def _join_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Joins blocks to documents of at most MAX_DOCUMENT_CHARACTERS; longer blocks are cut between paragraphs."""
    document = ""
    for block in _split_long_blocks(blocks):
        if document and len(document) + 2 + len(block) > MAX_DOCUMENT_CHARACTERS:
            yield document
            document = block
        else:
            document = f"{document}\n\n{block}" if document else block
    if document:
        yield document


def _split_long_blocks(blocks: Iterable[str]) -> Iterator[str]:
    for block in blocks:
        if len(block) <= MAX_DOCUMENT_CHARACTERS:
            yield block
        else:
            yield from (paragraph for paragraph in block.split("\n\n") if paragraph.strip())

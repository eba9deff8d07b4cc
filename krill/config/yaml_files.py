"""The user's YAML files: a mistake in one is an error with its file and line, before Hydra reads it.

Hydra ends with a traceback on some of these mistakes, and silently puts the keys elsewhere on others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse

from krill.config.key_aliases import HYDRA_KEYS
from krill.config.paths import list_config_groups, list_config_options, relative_path
from krill.config.suggestions import suggest
from krill.errors import UsageError, get_first_line

Errors = Iterator[tuple[int, str]]
"""Pairs (line, message)."""

GLOBAL_DIRECTIVE = "# @package _global_"

_YAML_HINTS = {
    "\\t": "indent with spaces, not with tabs",
    "block": "indent the lines of a section equally, with spaces",
    "mapping values are not allowed": "indent the keys of a section equally, and quote a value that contains ': '",
    "mapping value": "quote a value that contains ': '",
    "',' or ']'": "close the list with ]",
    "',' or '}'": "close the mapping with }",
    "another document": "leave the line --- out",
    "duplicate key": "write it once",
    "alias": "quote a value that begins with *",
    "tag": "quote a value that begins with !",
    "unhashable": "a key is a name",
    "scanning a simple key": "write it as key: value",
    "could not find expected ':'": "write it as key: value",
    "quoted scalar": "close the quotation mark",
    "special characters are not allowed": "remove the control character",
}
"""Part of a message of PyYAML → what to do."""


@dataclass(frozen=True)
class ConfigFile:
    """A YAML file of a configuration folder, parsed with its line numbers."""

    path: Path
    group: str
    """The config group: the folder of the file in the configuration folder; empty for a file of a command."""
    root: yaml.Node | None
    package: str | None
    """The value of its directive # @package, if it has one."""

    @property
    def prefix(self) -> str:
        """The section that its keys are in, with a dot, or an empty string for the top level."""
        package = self.group.replace("/", ".") if self.package is None else self.package
        return f"{package}." if package not in ("", "_global_") else ""

    @property
    def items(self) -> Sequence[tuple[yaml.ScalarNode, yaml.Node]]:
        """The keys and values at its top level."""
        return self.root.value if isinstance(self.root, yaml.MappingNode) else ()

    def get(self, name: str) -> yaml.Node | None:
        """Returns the value of a key at its top level."""
        return next((value for key, value in self.items if key.value == name), None)

    def find_line(self, key: str) -> int | None:
        """Returns the line in which the file sets `key`, a dotted key of the composed configuration."""
        if not key.startswith(self.prefix):
            return None
        line: int | None = None
        items = self.items
        for part in key.removeprefix(self.prefix).split("."):
            item = next((item for item in items if item[0].value == part), None)
            if item is None:
                return line if items == () and line else None
            line = _get_line(item[0])
            items = item[1].value if isinstance(item[1], yaml.MappingNode) else ()
        return line


def read_config_file(file: Path, group: str) -> ConfigFile:
    """Parses a YAML file. Raises UsageError with the line of what is not YAML in it."""
    text = _read_text(file)
    try:
        loader = get_yaml_loader()(text)
        root = loader.get_single_node()
        if root is not None:
            loader.construct_document(root)
    except yaml.YAMLError as error:
        raise UsageError(_describe_yaml_error(file, text, error)) from error
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45; deep nesting
        raise UsageError(f"{relative_path(file)}: is not YAML: {get_first_line(error)}") from error
    return ConfigFile(file, group, root, _read_package(file, text))


def check_config_file(file: Path, group: str, folders: Sequence[Path]) -> None:
    """Raises UsageError with file and line of everything in one of the user's files that Hydra would misread.

    `folders`: all configuration folders, in which the options that it names are.
    """
    config_file = read_config_file(file, group)
    errors = sorted(_find_errors(config_file, folders))
    if errors:
        raise UsageError("\n".join(f"{relative_path(file)}:{line}: {message}" for line, message in errors))


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise UsageError(f"{relative_path(file)}: is not a file")
    content = file.read_bytes()
    for mark, name in (
        (b"\xff\xfe", "in UTF-16"),
        (b"\xfe\xff", "in UTF-16"),
        (b"\xef\xbb\xbf", "with a BOM"),
    ):
        if content.startswith(mark):
            raise UsageError(f"{relative_path(file)}:1: is saved {name}; save it as UTF-8 without a BOM")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{relative_path(file)}:{line}: is not UTF-8; save it as UTF-8") from error


def _describe_yaml_error(file: Path, text: str, error: yaml.YAMLError) -> str:
    problem = get_first_line(error)
    line = text[: getattr(error, "position", 0) or 0].count("\n") + 1
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem, line = error.problem or problem, mark.line + 1 if mark else line
    described = f"{error} {problem}"
    hint = next((f"; {hint}" for part, hint in _YAML_HINTS.items() if part in described), "")
    return f"{relative_path(file)}:{line}: {problem}{hint}"


def _read_package(file: Path, text: str) -> str | None:
    """Returns the package directive. Like Hydra, it ends at the first line that is neither empty nor # @…"""
    package = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if not re.match(r"\s*#\s*@", line):
            break
        parts = line.strip().lstrip("#").split()
        if len(parts) != 2:
            raise UsageError(f"{relative_path(file)}:{number}: {line.strip()}: use {GLOBAL_DIRECTIVE}")
        if parts[0] == "@package":
            package = parts[1]
    return package


def _find_errors(file: ConfigFile, folders: Sequence[Path]) -> Errors:
    if not (file.root is None or isinstance(file.root, yaml.MappingNode) or _is_null(file.root)):
        kind = "a list" if isinstance(file.root, yaml.SequenceNode) else "text"
        yield _get_line(file.root), f"the file is {kind}; write key: value on each line"
        return
    yield from _find_package_errors(file)
    yield from _find_key_errors(file)
    yield from _find_defaults_errors(file, folders)


def _find_package_errors(file: ConfigFile) -> Errors:
    if file.path.name.startswith("_"):
        return  # another file includes it, in whatever package
    is_misplaced = isinstance(file.get(file.group), yaml.MappingNode)
    if file.group == "experiment" and file.package != "_global_":
        yield (
            1,
            (
                f"the first line of an experiment must be {GLOBAL_DIRECTIVE}, or its keys are those of a section "
                f"'{file.prefix.rstrip('.')}'"
            ),
        )
    elif file.prefix == f"{file.group}." and is_misplaced:
        yield (
            1,
            (
                f"the keys of this file are in the section {file.group} already: add {GLOBAL_DIRECTIVE} as the first "
                f"line, or leave the line {file.group}: out"
            ),
        )


def _find_key_errors(file: ConfigFile) -> Errors:
    """Yields options that are set as values, and interpolations that do not parse."""
    if not file.prefix:
        for key, value in file.items:
            is_section = isinstance(value, yaml.MappingNode) or _is_optional_section(file, key.value, value)
            if key.value in list_config_groups() and not is_section:
                yield _get_line(key), _describe_value_of_group(file, key.value, value)
    unsupported = HYDRA_KEYS if file.path.name != "_hydra.yaml" else {}  # a copy of krill's
    for key_name, message in unsupported.items():
        if (line := file.find_line(key_name)) is not None:
            yield line, f"{key_name}: {message}"
    for node in _iterate_scalars(file.root):
        if "${" in node.value:
            try:
                parse(node.value)
            except OmegaConfBaseException as error:
                yield _get_line(node), f"{node.value}: {get_first_line(error)}"


def _is_optional_section(file: ConfigFile, group: str, value: yaml.Node) -> bool:
    """Returns whether a section is null because the defaults list of the file chooses no option of its group."""
    defaults = file.get("defaults")
    entries = defaults.value if isinstance(defaults, yaml.SequenceNode) else []
    pairs = [pair for entry in entries if isinstance(entry, yaml.MappingNode) for pair in entry.value]
    return _is_null(value) and any(key.value == group and _is_null(option) for key, option in pairs)


def _describe_value_of_group(file: ConfigFile, group: str, value: yaml.Node) -> str:
    if group == "experiment":
        return "experiment: is for the command line, as in experiment=tiny_ko; leave it out"
    if not isinstance(value, yaml.ScalarNode) or _is_null(value):
        return f"{group}: is a section; write its keys below it, or leave it out"
    override = _format_default(file, group, value.value)
    return f"{group}: {value.value}: choose an option in the list defaults: with {override}"


def _format_default(file: ConfigFile, group: str, option: str) -> str:
    return f"- override /{group}: {option}" if file.group else f"- {group}: {option}"


def _find_defaults_errors(file: ConfigFile, folders: Sequence[Path]) -> Errors:
    defaults = file.get("defaults")
    if defaults is None:
        return
    if not isinstance(defaults, yaml.SequenceNode):
        yield (
            _get_line(defaults),
            f"defaults: is a list: begin each of its lines with '- ', as in '{_EXAMPLE}'",
        )
        return
    for entry in defaults.value:
        if isinstance(entry, yaml.ScalarNode):
            yield from _find_scalar_default_errors(file, entry, folders)
        elif isinstance(entry, yaml.MappingNode) and len(entry.value) == 1:
            yield from _find_default_errors(file, entry.value[0][0], entry.value[0][1], folders)
        else:
            yield _get_line(entry), f"an entry of defaults: has one option: write it as in '{_EXAMPLE}'"


_EXAMPLE = "- override /model: llama_nano"


def _find_scalar_default_errors(file: ConfigFile, entry: yaml.ScalarNode, folders: Sequence[Path]) -> Errors:
    """Yields what is wrong with an entry such as `- files`, which includes another file."""
    name = entry.value.partition("@")[0]
    if name == "_self_" or "${" in name or _is_null(entry):
        return
    if " " in name:
        yield _get_line(entry), f"{name}: write it as in '{_EXAMPLE}'"
        return
    path = name.removeprefix("/") if name.startswith("/") else f"{file.group}/{name}"
    group, _, option = path.removesuffix(".yaml").rpartition("/")
    yield from _find_option_errors(entry, group, option, folders)


def _find_default_errors(
    file: ConfigFile, key: yaml.Node, value: yaml.Node, folders: Sequence[Path]
) -> Errors:
    """Yields what is wrong with an entry such as `- override /model: llama_nano`, which chooses an option."""
    *keywords, target = str(key.value).split() or [""]
    group, _, package = target.removeprefix("/").partition("@")
    if group.startswith("hydra") or "${" in target or package or "optional" in keywords:
        return
    known = {name for folder in folders for name in list_config_groups(folder)}
    nested = f"{file.group}/{group}".removeprefix("/")
    if not target.startswith("/") and any((folder / nested).is_dir() for folder in folders):
        group = nested
    elif group not in known:
        yield _get_line(key), f"no config group '{group}'. {suggest(group, sorted(known))}"
        return
    elif file.group and (not target.startswith("/") or "override" not in keywords):
        option = value.value if isinstance(value, yaml.ScalarNode) else "…"
        yield _get_line(key), f"{key.value}: {option}: use {_format_default(file, group, option)}"
        return
    options = value.value if isinstance(value, yaml.SequenceNode) else [value]
    for option in options:
        if isinstance(option, yaml.ScalarNode) and not _is_null(option):
            yield from _find_option_errors(option, group, option.value, folders)


def _find_option_errors(node: yaml.Node, group: str, option: str, folders: Sequence[Path]) -> Errors:
    if "${" in option or any((folder / group / f"{option}.yaml").is_file() for folder in folders):
        return
    known = list_config_options(group, folders)
    yield _get_line(node), f"unknown option '{option}' for {group or 'defaults'}. {suggest(option, known)}"


def _iterate_scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _iterate_scalars(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _iterate_scalars(value)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _get_line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class ConfigOrigins:
    """Where the keys of a composed configuration were set: which of the user's files, and in which line."""

    def __init__(self, files: Sequence[ConfigFile], overrides: Collection[str]):
        """`files`: those that were composed, the one with precedence first; `overrides`: keys of the command line."""
        self.files, self.overrides = files, overrides

    @classmethod
    def find(
        cls, command: str, choices: Mapping[str, str], folders: Sequence[Path], overrides: Collection[str]
    ) -> ConfigOrigins:
        """Finds the user's files.

        Args:
            command: the name of the primary configuration.
            choices: config group → option.
            folders: the user's folders, the one with precedence first.
            overrides: the keys that the command line sets.
        """
        options = sorted(choices.items(), key=lambda choice: choice[0] != "experiment")
        options.insert(1 if choices.get("experiment") else 0, ("", command))
        paths = [
            (
                group,
                next(
                    (file for folder in folders if (file := folder / group / f"{name}.yaml").is_file()), None
                ),
            )
            for group, name in options
        ]
        return cls([read_config_file(path, group) for group, path in paths if path], overrides)

    def format_errors(self, errors: Sequence[tuple[str, str]]) -> str:
        """Returns a line for each pair (key, message), with file and line where one of the user's files sets the key.

        Many missing keys of a section are one error if the user's file of that section includes no other file.
        """
        incomplete = {
            file.group: file
            for file in self.files
            if file.group in _BASE_OPTIONS and not file.get("defaults")
        }
        missing: dict[str, list[str]] = {}
        for key, message in errors:
            section = key.partition(".")[0]
            if section in incomplete and message.startswith(f"{key} is not set"):
                missing.setdefault(section, []).append(key)
        messages = []
        for key, message in errors:
            section = key.partition(".")[0]
            keys = missing.get(section, [])
            if key not in keys or (len(keys) < _MANY_KEYS and not _KIND_KEYS.intersection(keys)):
                messages.append(self._locate(key) + message)
            elif key == keys[0]:
                messages.append(_describe_incomplete_file(incomplete[section], keys))
        return "\n".join(messages)

    def _locate(self, key: str) -> str:
        if any(key == override or key.startswith(f"{override}.") for override in self.overrides):
            return ""
        for file in self.files:
            if (line := file.find_line(key)) is not None:
                return f"{relative_path(file.path)}:{line}: "
        return ""


_BASE_OPTIONS = {
    "data": "_rules", "model": "llama_nano", "tokenizer": "bpe_4k", "optimizer": "adamw", "scheduler": "cosine",
    "hardware": "auto", "evaluation": "auto",
}  # fmt: skip
"""Config group → the option that a file of the user can begin with."""

_KIND_KEYS = {"data.source", "model.family", "optimizer.name", "scheduler.name"}
"""Keys that say of which kind a section is; without one, its other keys are not checked."""

_MANY_KEYS = 3
"""Missing keys of a section from which on its file lacks a base rather than these keys."""


def _describe_incomplete_file(file: ConfigFile, keys: Sequence[str]) -> str:
    source, has_paths = file.get("source"), file.group == "data" and file.get("paths") is not None
    is_of_files = source.value == "files" if source is not None else has_paths
    base = "files" if is_of_files else _BASE_OPTIONS[file.group]
    what = f"{keys[0]} and {len(keys) - 1} other keys are" if len(keys) > 1 else f"{keys[0]} is"
    return (
        f"{relative_path(file.path)}: {what} not set; include the file that sets what is missing: add the line "
        f"'defaults: [{base}, _self_]'"
    )

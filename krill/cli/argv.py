"""Command-line arguments, sorted into the flags and the overrides that Hydra expects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from krill.cli.completion import COMPLETION_FLAGS, is_completion
from krill.config.key_aliases import HYDRA_KEYS, find_foreign_key, find_hydra_key
from krill.config.overrides import (
    OVERRIDE_PATTERN,
    get_override_key,
    get_override_value,
    list_overridden_keys,
)
from krill.errors import UsageError

_BOOLEAN_FLAGS = {"--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", *COMPLETION_FLAGS}
_UNNEEDED_FLAGS = {"--config-path", "-cp", "--config-name", "-cn"}
_VALUE_FLAGS = {"--cfg", "-c", "--package", "-p"}
_INFO_FLAGS = {"--info", "-i"}
_FLAG_CHOICES = {
    ("--cfg", "-c"): ("job", "hydra", "all"),
    ("--info",): ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
"""Names of a flag → its values."""


@dataclass
class ParsedArguments:
    """The arguments of one command line."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)
    positionals: list[str] = field(default_factory=list)
    """The arguments without "=" of a command that takes several."""

    @property
    def is_multirun(self) -> bool:
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def is_completion(self) -> bool:
        """Whether the shell asks for completions."""
        return is_completion(self.flags)

    @property
    def is_print_only(self) -> bool:
        """Whether the configuration is only printed."""
        flags = {flag.partition("=")[0] for flag in self.flags}
        return bool(flags & {"--cfg", "-c", "--info", "-i", "--hydra-help"}) or self.is_completion

    def get_flag_value(self, *names: str) -> str | None:
        """Returns the value of a flag that has one of these names, an empty string if it has no value, or None."""
        for index, flag in enumerate(self.flags):
            name, equals, value = flag.partition("=")
            if name in names:
                following = self.flags[index + 1] if index + 1 < len(self.flags) else "-"
                return value if equals else following if not following.startswith("-") else ""
        return None

    def get_value(self, key: str) -> str | None:
        """Returns the last value that is set for `key`, as a string, or None."""
        return next(
            (get_override_value(text) for text in reversed(self.overrides) if get_override_key(text) == key),
            None,
        )

    def get_keys(self) -> set[str]:
        """Returns the keys of all overrides."""
        return {get_override_key(text) for text in self.overrides}

    def get_overrides_without(self, *keys: str) -> list[str]:
        """Returns the overrides of all keys but `keys`."""
        return [text for text in self.overrides if get_override_key(text) not in keys]


def parse_arguments(
    argv: Sequence[str], positional_key: str | None = None, has_several: bool = False
) -> ParsedArguments:
    """Returns the flags and the overrides in `argv`, in any order.

    `positional_key`: the key of which one argument without "=" is the value, or with `has_several` any number of
    them. Raises UsageError that lists every argument that is neither a flag nor an override.
    """
    parsed, errors = ParsedArguments(), []
    arguments, previous = list(argv), ""
    example = {
        None: "options are chosen as in model=tiny_ko",
        "model": 'set the prompt with prompt="…"',
        "data": "one argument names the tokens, options are chosen as in tokenizer=bpe_32k",
    }[positional_key]
    while arguments:
        argument = arguments.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            parsed.config_dirs.append(value if equals else _pop_flag_value(argument, arguments))
        elif flag in _UNNEEDED_FLAGS:
            value = value if equals else _pop_flag_value(argument, arguments)
            errors.append(_describe_unneeded_flag(flag, value))
        elif argument == "--":
            continue
        elif flag in _VALUE_FLAGS:
            parsed.flags += [argument] if equals else [argument, _pop_flag_value(argument, arguments)]
        elif argument in _BOOLEAN_FLAGS:
            parsed.flags.append(argument)
        elif flag in _INFO_FLAGS:
            if not equals and arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
                value = arguments.pop(0)
            parsed.flags.append(f"--info={value or 'all'}")
        elif argument.startswith("-"):
            errors.append(_describe_dashed_argument(argument, arguments))
        elif unsupported := _find_unsupported_hydra_keys(argument):
            errors += [f"{argument}: {HYDRA_KEYS[key]}" for key in unsupported]
        elif OVERRIDE_PATTERN.match(argument) or argument.startswith("~"):
            parsed.overrides.append(argument)
        elif has_several and not (argument.startswith(("=", ",")) or previous.endswith(("=", ","))):
            parsed.positionals.append(argument)
        elif positional_key is not None and not has_several:
            parsed.overrides.append(f"{positional_key}={argument}")
            positional_key = None
        else:
            problem = f"'{argument}' is not key=value"
            errors.append(_describe_bare_argument(previous, argument, arguments) or f"{problem}; {example}")
        previous = argument
    errors += _find_flag_errors(parsed)
    if errors:
        raise UsageError("\n".join(errors))
    return parsed


def _find_unsupported_hydra_keys(argument: str) -> list[str]:
    """Returns the keys of `HYDRA_KEYS` that an override sets, also in a mapping: hydra.run={dir: x}."""
    if get_override_key(argument).partition(".")[0] != "hydra":
        return []
    return list(dict.fromkeys(filter(None, map(find_hydra_key, list_overridden_keys(argument)))))


def _find_flag_errors(parsed: ParsedArguments) -> list[str]:
    """Returns the errors of the flags that print a configuration."""
    errors = []
    for names, known in _FLAG_CHOICES.items():
        value = parsed.get_flag_value(*names)
        if value is not None and value not in known:
            errors.append(f"{names[0]} {value}: use {names[0]} {', '.join(known)}")
    if not parsed.is_print_only:
        package = parsed.get_flag_value("-p", "--package")
        errors += [f"-p goes with --cfg job: use --cfg job -p {package}"] if package is not None else []
        errors += (
            ["--resolve goes with --cfg job: use --cfg job --resolve"] if "--resolve" in parsed.flags else []
        )
    return errors


def _pop_flag_value(flag: str, arguments: list[str]) -> str:
    if not arguments:
        raise UsageError(f"{flag} needs a value after it")
    return arguments.pop(0)


def _describe_unneeded_flag(flag: str, value: str) -> str:
    """Returns the message for a flag of Hydra that names its configuration, which krill finds itself."""
    if flag in ("--config-path", "-cp"):
        return f"{flag} is not needed: krill finds its own files; add yours with --config-dir {value}"
    name = Path(value).stem
    return (
        f"{flag} is not needed: each command has its configuration; for conf/experiment/{name}.yaml use "
        f"experiment={name}"
    )


def _describe_bare_argument(previous: str, argument: str, arguments: list[str]) -> str | None:
    """Returns the message for an argument without "=" that is clearly a part of an override, or the name of a file.

    Takes the other parts of the override from `arguments`, those that follow.
    """
    from krill.sources.formats import COMPRESSIONS, FILE_KINDS

    path = Path(argument)
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*", argument) is not None
    follows = previous.endswith((",", "=")) or argument.startswith((",", "="))
    if follows or (arguments and arguments[0].startswith(("=", ","))):
        parts = [*([previous] if follows else []), argument]
        while arguments and (parts[-1].endswith((",", "=")) or arguments[0].startswith((",", "="))):
            parts.append(arguments.pop(0))
        return f"{' '.join(parts)}: an override has no spaces; use {''.join(parts)}"
    if path.suffix.lower() in (*FILE_KINDS, *COMPRESSIONS):
        return f"'{argument}' is not key=value; for a file of your own use data=files data.paths=[{argument}]"
    if path.suffix in (".yaml", ".yml"):
        return (
            f"'{argument}' is not key=value; for conf/experiment/{path.stem}.yaml use experiment={path.stem}"
        )
    if is_name and arguments and re.fullmatch(r"[\w.-]+", arguments[0]) and arguments[0][0] != "-":
        return f"'{argument}' is not key=value; use {_build_override(argument, arguments.pop(0))}"
    return None


def _build_override(key: str, value: str) -> str:
    """Returns the override that sets `key`, also if that is the name of a key in another tool."""
    return (find_foreign_key(key) or f"{key}=…").replace("…", value or "…", 1)


def _describe_dashed_argument(argument: str, arguments: list[str]) -> str:
    name, equals, value = argument.lstrip("-").partition("=")
    if not equals and arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        value = arguments.pop(0)
    return f"krill takes key=value, not {argument}: use {_build_override(name.replace('-', '_'), value)}"

"""Command-line arguments, sorted into the flags and the overrides that Hydra expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from krill.config.overrides import OVERRIDE_PATTERN, get_override_key, get_override_value
from krill.errors import UsageError

_BOOLEAN_FLAGS = {"--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--shell-completion", "-sc"}
_VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"}
_INFO_FLAGS = {"--info", "-i"}


@dataclass
class ParsedArguments:
    """The arguments of one command line."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)

    @property
    def is_multirun(self) -> bool:
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def is_completion(self) -> bool:
        """Whether the shell asks for completions."""
        return bool({"-sc", "--shell-completion"}.intersection(self.flags))

    @property
    def is_print_only(self) -> bool:
        """Whether the configuration is only printed."""
        flags = {flag.partition("=")[0] for flag in self.flags}
        return bool(flags & {"--cfg", "-c", "--info", "-i", "--hydra-help"}) or self.is_completion

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


def parse_arguments(argv: Sequence[str], positional_key: str | None = None) -> ParsedArguments:
    """Returns the flags and the overrides in `argv`, in any order.

    `positional_key`: the key of which one argument without "=" is the value. Raises UsageError that lists every
    argument that is neither a flag nor an override.
    """
    parsed, errors = ParsedArguments(), []
    arguments = list(argv)
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
        elif flag in _VALUE_FLAGS:
            parsed.flags += [argument] if equals else [argument, _pop_flag_value(argument, arguments)]
        elif argument in _BOOLEAN_FLAGS:
            parsed.flags.append(argument)
        elif flag in _INFO_FLAGS:
            parsed.flags.append(argument)
            if not equals and arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
                parsed.flags.append(arguments.pop(0))
        elif argument.startswith("-"):
            errors.append(_describe_dashed_argument(argument, arguments))
        elif OVERRIDE_PATTERN.match(argument) or argument.startswith("~"):
            parsed.overrides.append(argument)
        elif positional_key is not None:
            parsed.overrides.append(f"{positional_key}={argument}")
            positional_key = None
        else:
            errors.append(f"'{argument}' is not key=value; {example}")
    if errors:
        raise UsageError("\n".join(errors))
    return parsed


def _pop_flag_value(flag: str, arguments: list[str]) -> str:
    if not arguments:
        raise UsageError(f"{flag} needs a value after it")
    return arguments.pop(0)


def _describe_dashed_argument(argument: str, arguments: list[str]) -> str:
    name, equals, value = argument.lstrip("-").partition("=")
    if not equals and arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        value = arguments.pop(0)
    return f"krill takes key=value, not {argument}: use {name.replace('-', '_')}={value or '…'}"

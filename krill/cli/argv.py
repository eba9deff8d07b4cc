"""What a person types, as Hydra wants it: flags first, values quoted where Hydra's grammar needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from krill.errors import UsageError

LITERAL_KEYS = ("prompt", "sample_prompt", "text")
"""Keys whose value is the text as typed, whatever stands in it."""

TEXT_KEYS = ("name", "output", "data.name", "data.text_column", "model.name", "model.path", "model.from",
        "tokenizer.name", "tokenizer.path", "hub.id", "store", "plot")  # fmt: skip
"""Keys whose value is text where it looks like a number or a truth value as well: name=1e3."""

EXCLUSIVE_KEYS = (("steps", "epochs"), ("batch.tokens", "batch.gradient_accumulation_steps"))
"""Pairs of which setting one clears the other."""

_BOOLEAN_FLAGS = {"--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--shell-completion", "-sc"}
_VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"}
_INFO_FLAGS = {"--info", "-i"}
_OVERRIDE_PATTERN = re.compile(r"^(?P<sign>~|\+\+|\+)?(?P<key>[^=\s]+)=(?P<value>.*)$", re.DOTALL)


@dataclass
class ParsedArguments:
    """One command line, sorted."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)

    @property
    def is_multirun(self) -> bool:
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def is_completion(self) -> bool:
        """Whether the shell asks how a word may go on."""
        return bool({"-sc", "--shell-completion"}.intersection(self.flags))

    @property
    def is_print_only(self) -> bool:
        """Whether the configuration is only printed."""
        flags = {flag.partition("=")[0] for flag in self.flags}
        return bool(flags & {"--cfg", "-c", "--info", "-i", "--hydra-help"}) or self.is_completion

    def get_value(self, key: str) -> str | None:
        """The last value typed for `key`, as typed."""
        return next((_get_value(text) for text in reversed(self.overrides) if _get_key(text) == key), None)

    def keys(self) -> set[str]:
        """Every key that was typed."""
        return {_get_key(text) for text in self.overrides}

    def overrides_without(self, *keys: str) -> list[str]:
        """The overrides but those of `keys`."""
        return [text for text in self.overrides if _get_key(text) not in keys]


def parse_arguments(argv: Sequence[str], bare: str | None = None) -> ParsedArguments:
    """Flags and overrides apart, wherever they stand; a bare word is the value of key `bare`, if given.

    Raises UsageError that lists every word that is neither.
    """
    typed, wrong = ParsedArguments(), []
    words = list(argv)
    example = {
        None: "options are chosen as in model=tiny_ko",
        "model": 'words to go on from are prompt="…"',
        "data": "one word names the tokens, options are chosen as in tokenizer=bpe_32k",
    }[bare]
    while words:
        word = words.pop(0)
        flag, glued, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            typed.config_dirs.append(value if glued else _pop_flag_value(word, words))
        elif flag in _VALUE_FLAGS:
            typed.flags += [word] if glued else [word, _pop_flag_value(word, words)]
        elif word in _BOOLEAN_FLAGS:
            typed.flags.append(word)
        elif flag in _INFO_FLAGS:
            typed.flags.append(word)
            if not glued and words and "=" not in words[0] and not words[0].startswith("-"):
                typed.flags.append(words.pop(0))
        elif word.startswith("-"):
            wrong.append(_describe_dashed_argument(word, words))
        elif _OVERRIDE_PATTERN.match(word) or word.startswith("~"):
            typed.overrides.append(word)
        elif bare is not None:
            typed.overrides.append(f"{bare}={word}")
            bare = None
        else:
            wrong.append(f"'{word}' is not key=value; {example}")
    if wrong:
        raise UsageError("\n".join(wrong))
    return typed


def clear_exclusive_keys(overrides: Sequence[str]) -> list[str]:
    """`overrides` with key=null added for the other key of each exclusive pair of which one is set."""
    values = {_get_key(text): _get_value(text) for text in overrides}
    added = [
        f"{other}=null"
        for pair in EXCLUSIVE_KEYS
        for one, other in (pair, pair[::-1])
        if values.get(one, "null") != "null" and other not in values
    ]
    return [*overrides, *added]


def replace_key(override: str, key: str, other: str) -> str:
    """`override` under the key `other`, if it is one of `key`."""
    return f"{other}={_get_value(override)}" if _get_key(override) == key else override


def quote_override(override: str) -> str:
    """`override` with its value quoted where Hydra could not read it as typed."""
    match = _OVERRIDE_PATTERN.match(override)
    if match is None:
        return override
    key, value = match["key"], match["value"]
    head = override[: len(override) - len(value)]
    if key in LITERAL_KEYS:
        return head + _quote_literal(value)
    if key in TEXT_KEYS:
        return head + ",".join(map(_quote_text, _split_at_commas(value)))
    return override if _is_parsable(f"k={value}") else head + _quote_value(value)


def _quote_value(value: str) -> str:
    """Quote only the parts of a list, mapping, sweep or function call that Hydra cannot read."""
    if _is_parsable(f"k={value}"):
        return value
    call = re.match(r"^(choice|range|interval|glob|sort|shuffle|tag|extend_list)\((.*)\)$", value, re.DOTALL)
    if call:
        return f"{call[1]}({','.join(map(_quote_value, _split_at_commas(call[2])))})"
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(map(_quote_value, _split_at_commas(value[1:-1])))}]"
    if value.startswith("{") and value.endswith("}"):
        pairs = (pair.partition(":") for pair in _split_at_commas(value[1:-1]))
        return "{" + ",".join(f"{name.strip()}:{_quote_value(item)}" for name, _, item in pairs) + "}"
    parts = _split_at_commas(value)
    if len(parts) > 1:
        return ",".join(map(_quote_value, parts))
    return QuotedString(text=value.strip(), quote=Quote.single).with_quotes()


def _quote_text(value: str) -> str:
    """`value` such that Hydra reads text, or null, or a function such as choice()."""
    if not _is_parsable(f"k={value}"):
        return _quote_value(value)
    read = OverridesParser.create().parse_override(f"k={value}").value()
    return (
        QuotedString(value.strip(), Quote.single).with_quotes()
        if isinstance(read, (bool, int, float))
        else value
    )


def _quote_literal(text: str) -> str:
    """`text` such that neither Hydra's grammar nor OmegaConf's interpolation changes a character of it."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    if text == "???":  # to OmegaConf the mark of a missing value
        escaped = "${oc.decode:\"'???'\"}"
    return QuotedString(text=escaped, quote=Quote.single).with_quotes()


def _split_at_commas(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[index - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if quote:  # an apostrophe, not a quotation
        return text.split(",")
    return [*parts, text[start:]]


def _is_parsable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _get_key(override: str) -> str:
    match = _OVERRIDE_PATTERN.match(override)
    return match["key"] if match else override.lstrip("~+")


def _get_value(override: str) -> str:
    match = _OVERRIDE_PATTERN.match(override)
    return match["value"] if match else ""


def _pop_flag_value(flag: str, words: list[str]) -> str:
    if not words:
        raise UsageError(f"{flag} needs a value after it")
    return words.pop(0)


def _describe_dashed_argument(word: str, words: list[str]) -> str:
    name, glued, value = word.lstrip("-").partition("=")
    if not glued and words and not words[0].startswith("-") and "=" not in words[0]:
        value = words.pop(0)
    return f"krill takes key=value, not {word}: write {name.replace('-', '_')}={value or '…'}"


def to_unresolved_list(overrides: Any) -> list[str]:
    """A list of OmegaConf's as it was written: iterating over it would resolve each ${…}."""
    written = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(written, list)
    return written

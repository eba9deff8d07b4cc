"""Overrides in Hydra's grammar: free text is quoted as the grammar requires, exclusive keys clear each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf

from krill.errors import UsageError

LITERAL_KEYS = ("prompt", "sample_prompt", "system", "text")
"""Keys whose value is text, taken character for character."""

TEXT_KEYS = ("name", "output", "branch", "data.name", "data.text_column", "model.name", "model.path", "model.from",
        "tokenizer.name", "tokenizer.path", "hub.id", "store", "plot", "prompts", "trained_model",
        "attention")  # fmt: skip
"""Keys whose value is text even if it looks like a number or a boolean: name=1e3."""

TEXT_OR_BOOLEAN_KEYS = ("resume",)
"""Keys whose value is true, false, or text even if it looks like a number: a signature may have only digits."""

MODEL_COMMANDS = frozenset({"infer", "evaluate", "serve", "export"})
"""Commands on a trained model, which have no overrides of training."""

EXCLUSIVE_KEYS = (("steps", "epochs"), ("batch.tokens", "batch.gradient_accumulation_steps"))
"""Pairs of keys of which setting one clears the other."""

ALTERNATIVE_KEYS = (("lr", "lr_scale"),)
"""Pairs of keys of which setting one replaces the other one of an earlier run."""

MAX_RANGE_VALUES = 100_000
"""Number of values from which on a range() is a mistake: each is a run."""

OVERRIDE_PATTERN = re.compile(r"^(?P<sign>~|\+\+|\+)?(?P<key>[^=\s]+)=(?P<value>.*)$", re.DOTALL)
"""An override that sets a key."""

_CHOICE = re.compile(r"^choice\((.*)\)$", re.DOTALL)


def get_override_key(override: str) -> str:
    """Returns the key that `override` sets or removes."""
    match = OVERRIDE_PATTERN.match(override)
    return match["key"] if match else override.lstrip("~+")


def get_override_value(override: str) -> str:
    """Returns the value of `override` as written, or an empty string if it has none."""
    match = OVERRIDE_PATTERN.match(override)
    return match["value"] if match else ""


def list_overridden_keys(override: str) -> list[str]:
    """Returns the key that `override` sets or removes, and the dotted keys in its value if that is a mapping."""
    key = get_override_key(override)
    quoted = quote_override(override)
    if "{" not in quoted or not _is_parsable(get_override_value(quoted)):
        return [key]
    value = OverridesParser.create().parse_override(f"k={get_override_value(quoted)}").value()
    return [key, *(f"{key}.{name}" for name in iterate_dotted_keys(value))]


def iterate_dotted_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of a nested mapping, sections included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from iterate_dotted_keys(value, f"{prefix}{key}.")


def replace_key(override: str, key: str, new_key: str) -> str:
    """Returns `override` with `new_key` if it sets `key`, otherwise unchanged."""
    return f"{new_key}={get_override_value(override)}" if get_override_key(override) == key else override


def format_text_override(key: str, text: str) -> str:
    """Returns the override that sets `key` to `text`, such as a path, quoted if the grammar would change it."""
    is_plain = "${" not in text and text != "???" and _is_parsable(text)
    if is_plain and OverridesParser.create().parse_override(f"k={text}").value() == text:
        return f"{key}={text}"
    return f"{key}={_quote_literal(text)}"


def split_choices(override: str) -> list[str]:
    """Returns the values of a sweep as text, without quotes: a and b of key=a,b and key=choice(a,b)."""
    value = get_override_value(override)
    choice = _CHOICE.match(value)
    texts = []
    for element in _split_at_commas(choice[1] if choice else value):
        parsed = (
            OverridesParser.create().parse_override(f"k={element}").value() if _is_parsable(element) else None
        )
        texts.append(parsed if isinstance(parsed, str) else element.strip())
    return texts


def is_section_overridden(section: str, overrides: Iterable[str]) -> bool:
    """Returns whether one of `overrides` sets a section, chooses its option, or sets a key in it."""
    return any(get_override_key(override).partition(".")[0] == section for override in overrides)


def clear_exclusive_keys(overrides: Sequence[str]) -> list[str]:
    """Returns `overrides` plus other=null for each of `EXCLUSIVE_KEYS` of which only one key is set."""
    values = {get_override_key(override): get_override_value(override) for override in overrides}
    cleared = [
        f"{other}=null"
        for pair in EXCLUSIVE_KEYS
        for key, other in (pair, pair[::-1])
        if values.get(key, "null") != "null" and other not in values
    ]
    return [*overrides, *cleared]


def exclude_cleared_keys(overrides: Sequence[str]) -> list[str]:
    """Returns `overrides` without those that `clear_exclusive_keys` has added."""
    kept = [override for override in overrides if not override.endswith("=null")]
    added = set(clear_exclusive_keys(kept)).difference(kept)
    return [override for override in overrides if override not in added]


def expand_float_range(override: Override) -> str:
    """Returns the text of `override`, in which a range() of decimal numbers is the list of its exact values.

    Hydra adds the step as a binary number: its range(0.1,0.4,0.1) has 0.30000000000000004, and 0.4 as well. Raises
    UsageError for a range without values, or with more than `MAX_RANGE_VALUES`.
    """
    text, sweep = override.input_line or "", override.value()
    if not isinstance(sweep, RangeSweep):
        return text
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    count = (
        math.ceil((stop - start) / step) if step and step.is_finite() and (stop - start).is_finite() else 0
    )
    if not 0 < count <= MAX_RANGE_VALUES:
        raise UsageError(
            f"{text}: the range has {max(count, 0):,} values, not 1 to {MAX_RANGE_VALUES:,}; "
            "use range(start,stop,step)"
        )
    if all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step)):
        return text
    values = ",".join(str(float(start + index * step)) for index in range(count))
    return f"{text.partition('=')[0]}={f'shuffle({values})' if sweep.shuffle and count > 1 else values}"


def to_unresolved_list(overrides: Any) -> list[str]:
    """Returns an OmegaConf list as written; iterating over it would resolve every ${…}."""
    items = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(items, list)
    return items


def quote_override(override: str) -> str:
    """Returns `override` with its value quoted where Hydra's grammar would reject or change free text."""
    match = OVERRIDE_PATTERN.match(override)
    if match is None:
        return override
    key, value = match["key"], match["value"]
    if key in LITERAL_KEYS:
        quoted = _quote_literal(value)
    elif key in TEXT_KEYS:
        quoted = _quote_texts(value, (bool, int, float))
    elif key in TEXT_OR_BOOLEAN_KEYS:
        quoted = _quote_texts(value, (int, float))
    else:
        quoted = _quote_unparsable(value)
    return override.removesuffix(value) + quoted


def _quote_literal(text: str) -> str:
    """Quotes `text` so that neither Hydra's grammar nor OmegaConf's interpolation changes a character."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    if text == "???":  # OmegaConf's marker of a missing value
        escaped = "${oc.decode:\"'???'\"}"
    return _quote(escaped)


def _quote_texts(value: str, types: tuple[type, ...]) -> str:
    """Quotes each element of a sweep, or the only value, that Hydra reads as one of `types` instead of text.

    null, and function calls other than choice(), stay as they are.
    """
    choice = _CHOICE.match(value)
    elements = _split_at_commas(choice[1] if choice else value)  # a,b is the same sweep as choice(a,b)
    quoted = ",".join(_quote_text(element, types) for element in elements)
    return value if choice and quoted == choice[1] else quoted


def _quote_text(value: str, types: tuple[type, ...]) -> str:
    if not _is_parsable(value):
        return _quote_unparsable(value)
    parsed = OverridesParser.create().parse_override(f"k={value}").value()
    return _quote(value.strip()) if type(parsed) in types else value


def _quote_unparsable(value: str) -> str:
    """Quotes the elements of a list, mapping or sweep that Hydra cannot parse."""
    if _is_parsable(value):
        return value
    if choice := _CHOICE.match(value):  # a,b is the same sweep; Hydra drops the quotes inside of choice()
        value = choice[1]
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(map(_quote_unparsable, _split_at_commas(value[1:-1])))}]"
    if value.startswith("{") and value.endswith("}"):
        pairs = (pair.partition(":") for pair in _split_at_commas(value[1:-1]))
        return "{" + ",".join(f"{key.strip()}:{_quote_unparsable(item)}" for key, _, item in pairs) + "}"
    elements = _split_at_commas(value)
    return ",".join(map(_quote_unparsable, elements)) if len(elements) > 1 else _quote(value.strip())


def _quote(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _is_parsable(value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"k={value}")
    except HydraException:
        return False
    return True


def _split_at_commas(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[index - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if quote:  # an apostrophe
        return text.split(",")
    return [*parts, text[start:]]

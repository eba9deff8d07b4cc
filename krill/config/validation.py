"""Validation of a composed configuration against its schema; all errors are reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from krill.config.key_aliases import REMOVED_KEYS, find_foreign_key, find_renamed_key
from krill.config.overrides import iterate_dotted_keys
from krill.config.rule_keys import RESOLVERS, find_rule_errors
from krill.config.size_rule import AUTO
from krill.config.suggestions import find_closest_name
from krill.config.yaml_files import ConfigOrigins
from krill.errors import UsageError, get_first_line

SchemaT = TypeVar("SchemaT", bound=BaseModel)
_UNION_TAG = re.compile(r"<|(literal\[.*|constrained-\w+|bool|str)$")


def validate_config(
    schema: type[SchemaT], composed: DictConfig, find_origins: Callable[[], ConfigOrigins] | None = None
) -> SchemaT:
    """Returns the typed configuration.

    Args:
        schema: the schema of the command.
        composed: the configuration that Hydra composed.
        find_origins: returns where its keys were set; errors then name the file and the line.

    Raises:
        UsageError: keys are missing, unknown or invalid; one line for each.
    """

    def build_error(messages: Sequence[tuple[str, str]]) -> UsageError:
        origins = find_origins() if find_origins else ConfigOrigins([], [])
        return UsageError(origins.format_errors(messages))

    unresolved: Any = OmegaConf.to_container(composed, resolve=False)
    missing = _find_missing_keys(unresolved)
    messages = [(key, _format_not_set(key)) for key in missing]
    messages += find_rule_errors(unresolved)
    try:
        values = resolve_interpolations(unresolved, composed)
    except InterpolationToMissingValueError as error:
        raise build_error(messages) from error
    except OmegaConfBaseException as error:
        raise build_error([(str(error.full_key), _format_interpolation_error(error))]) from error
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        messages += _list_errors(
            error, list(iterate_dotted_keys(values)), missing, _find_following_keys(unresolved)
        )
    if messages:
        raise build_error(messages)
    return config


def _format_interpolation_error(error: OmegaConfBaseException) -> str:
    message = get_first_line(error)
    if isinstance(error, InterpolationKeyError):
        source = message.partition("'")[2].partition("'")[0]
        return f"{error.full_key} follows {source}, which is not set; set one of them"
    if message.startswith(("Recursive interpolation", "RecursionError")):
        return f"{error.full_key}: it refers to itself, through ${{…}} of this or another key; set a value instead"
    reason = message.partition(" raised while resolving interpolation: ")[2] or message
    return f"{error.full_key}: {reason}" if error.full_key else reason


def resolve_interpolations(unresolved: Any, node: Any) -> Any:
    """Returns OmegaConf.to_container(node, resolve=True), in half of its time: few values are interpolations.

    `unresolved`: the plain container of `node`.
    """
    if isinstance(unresolved, dict):
        return {key: _resolve_item(value, node, key) for key, value in unresolved.items()}
    return [_resolve_item(value, node, index) for index, value in enumerate(unresolved)]


def _resolve_item(unresolved: Any, node: Any, key: Any) -> Any:
    if isinstance(unresolved, (dict, list)):
        return resolve_interpolations(unresolved, node[key])
    if not (isinstance(unresolved, str) and "${" in unresolved):
        return unresolved
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _find_missing_keys(values: Any, prefix: str = "") -> list[str]:
    """Returns the dotted keys whose value is ???, OmegaConf's marker of a missing value; nothing is resolved."""
    if not isinstance(values, Mapping):
        return [prefix] if values == "???" else []
    return [
        name
        for key, value in values.items()
        for name in _find_missing_keys(value, f"{prefix}.{key}" if prefix else str(key))
    ]


def _find_following_keys(unresolved: Any) -> set[str]:
    """Returns the dotted keys whose value is an interpolation: another key determines it."""
    return {
        key
        for key in iterate_dotted_keys(unresolved)
        if isinstance(value := _select(unresolved, key), str) and "${" in value
    }


def _select(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def format_unknown_key_error(key: str, candidates: Iterable[str]) -> str:
    """Returns the error message for a key that does not exist, with its present or the closest name."""
    if renamed := find_renamed_key(key):
        return f"no such key '{key}': it was renamed. Use {renamed}=…"
    if key in REMOVED_KEYS:
        return f"no such key '{key}': it was removed. {REMOVED_KEYS[key]}"
    known = list(candidates)
    if foreign := find_foreign_key(key, known):
        return f"no such key '{key}'. Use {foreign}"
    closest = find_closest_name(key, (name for name in known if name != key))
    return f"no such key '{key}'." + (f" Did you mean {closest}?" if closest else " All keys: --cfg job")


def _list_errors(
    error: ValidationError, known: list[str], missing: list[str], following: set[str]
) -> Iterable[tuple[str, str]]:
    """Yields key and message of each error, except for `missing` keys, which are reported already, and for
    keys that follow another key with the same error."""
    reported = set()
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in _strip_union_tags(item["loc"]))
        if item["type"] == "union_tag_not_found":
            key += f".{item['ctx']['discriminator'].strip(chr(39))}"
        value = str(item["input"])
        if key in missing or (key in following and value in reported):
            continue
        reported.add(value)
        yield key, _format_error(item, key, known)


def _format_error(item: ErrorDetails, key: str, known: list[str]) -> str:
    if item["type"] == "extra_forbidden":
        return format_unknown_key_error(key, known)
    if item["type"] in ("missing", "union_tag_not_found"):
        return _format_not_set(key)
    if item["type"] == "union_tag_invalid":
        return f"{key}: {item['ctx']['tag']!r} is not one of {item['ctx']['expected_tags']}"
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        return f"{key}: {message}" if key else message
    if item["type"].startswith(("model_", "dict_")):
        return f"{key}={_format_input(item['input'])}: {key} is a section; set its keys, as in {key}.KEY=…"
    if item["input"] == AUTO and key in RESOLVERS:
        return f"{key}={AUTO}: rule=size chooses {key} where it is not set: leave it out"
    hint = ""
    if isinstance(item["input"], list):
        values = ",".join(map(_format_input, item["input"]))
        hint = f"; it has one value, and the values of a sweep have no brackets: -m {key}={values}"
    return f"{key}={_format_input(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}{hint}"


def _format_not_set(key: str) -> str:
    return f"{key} is not set; use {key.removesuffix('.path') if key == 'model.path' else key}=…"


def _strip_union_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Drops the discriminator values that pydantic inserts after the names of sections that are unions.

    Those of unions in lists are written <…> in the schema; those of a value that may have several types are
    pydantic's names of the types.
    """
    tagged = {"model", "data", "optimizer", "scheduler"}
    return [
        part
        for index, part in enumerate(location)
        if (index == 0 or location[index - 1] not in tagged or index > 1) and not _UNION_TAG.match(str(part))
    ]


def _format_input(value: Any) -> str:
    return "null" if value is None else str(value)

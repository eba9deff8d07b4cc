"""Validation of a composed configuration against its schema; all errors are reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from krill.errors import UsageError, get_first_line

SchemaT = TypeVar("SchemaT", bound=BaseModel)

RENAMED_KEYS = {
    "sweep.slots": "sweep.max_parallel",
    "data.shards": "data.num_tasks",
    "data.shard": "data.task",
    "data.near": "data.minhash",
    "guard": "skip_step",
    "judge_bytes": "eval_bytes",
}
"""Former key → its name today, for keys and for sections."""

REMOVED_KEYS = {"optimizer.backend": "Muon is always krill's; leave the key out"}
"""Former key → what to do instead."""


def validate_config(schema: type[SchemaT], composed: DictConfig) -> SchemaT:
    """Returns the typed configuration.

    Raises:
        UsageError: keys are missing, unknown or invalid; one line for each.
    """
    unresolved = OmegaConf.to_container(composed, resolve=False)
    missing = _find_missing_keys(unresolved)
    try:
        values = resolve_interpolations(unresolved, composed)
    except InterpolationToMissingValueError as error:
        raise UsageError("\n".join(map(_format_not_set, missing))) from error
    except InterpolationKeyError as error:
        source = get_first_line(error).partition("'")[2].partition("'")[0]
        raise UsageError(f"{error.full_key} follows {source}, which is not set; set one of them") from error
    except OmegaConfBaseException as error:
        reason = get_first_line(error).partition(" raised while resolving interpolation: ")[2]
        raise UsageError(f"{error.full_key}: {reason}" if reason else get_first_line(error)) from error
    messages = [*map(_format_not_set, missing)]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        messages += _format_errors(error, list(iterate_dotted_keys(values)), missing)
    if messages:
        raise UsageError("\n".join(messages))
    return config


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
        for name in _find_missing_keys(value, f"{prefix}.{key}" if prefix else key)
    ]


def iterate_dotted_keys(values: Any, prefix: str = "") -> Iterable[str]:
    """Yields every dotted key of a nested mapping, sections included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from iterate_dotted_keys(value, f"{prefix}{key}.")


def find_closest_name(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that is most similar to `name`, or to its last part if both are dotted keys, or None."""
    names = list(dict.fromkeys(candidates))
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if matches:
        return matches[0]
    by_last_part = {key.rsplit(".", 1)[-1]: key for key in reversed(names)}
    last_part = name.rsplit(".", 1)[-1]
    if last_part in by_last_part:
        return by_last_part[last_part]
    matches = difflib.get_close_matches(last_part, by_last_part, n=1, cutoff=0.7)
    return by_last_part[matches[0]] if matches else None


def suggest(name: str, candidates: Iterable[str], template: str = "{}", max_listed: int | None = None) -> str:
    """Returns "Did you mean <the closest candidate>? Available: <all candidates>", the end of an error message.

    `template`: the form of the closest candidate, such as model={}. `max_listed`: the number of candidates to list.
    """
    names = list(dict.fromkeys(candidates))
    closest = find_closest_name(name, names)
    question = f"Did you mean {template.format(closest)}? " if closest else ""
    more = ["…"] if len(names) > (max_listed or len(names)) else []
    return f"{question}Available: {', '.join([*names[:max_listed], *more])}"


def find_renamed_key(key: str) -> str | None:
    """Returns the present name of a key in `RENAMED_KEYS` or in a section there, or None."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def format_unknown_key_error(key: str, candidates: Iterable[str]) -> str:
    """Returns the error message for a key that does not exist, with its present or the closest name."""
    if renamed := find_renamed_key(key):
        return f"no such key '{key}': it was renamed. Use {renamed}=…"
    if key in REMOVED_KEYS:
        return f"no such key '{key}': it was removed. {REMOVED_KEYS[key]}"
    closest = find_closest_name(key, (name for name in candidates if name != key))
    return f"no such key '{key}'." + (f" Did you mean {closest}?" if closest else " All keys: --cfg job")


def _format_errors(error: ValidationError, known: list[str], missing: list[str]) -> Iterable[str]:
    """Yields one message for each error, except for `missing` keys, which are reported already."""
    reported = set()
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in _strip_union_tags(item["loc"]))
        if key in missing:
            continue
        if item["type"].endswith(("_parsing", "_type")):  # a key that follows another has the same error
            cause = (item["type"], str(item["input"]))
            if cause in reported:
                continue
            reported.add(cause)
        if item["type"] == "extra_forbidden":
            yield format_unknown_key_error(key, known)
        elif item["type"] == "missing":
            yield _format_not_set(key)
        elif item["type"].startswith("union_tag"):
            context = item.get("ctx", {})
            expected = context.get("expected_tags", "")
            yield f"{key}: {context.get('tag', 'nothing')!r} is not one of {expected}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield f"{key}: {message}" if key else message
        else:
            yield f"{key}={_format_input(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _format_not_set(key: str) -> str:
    return f"{key} is not set; use {key.removesuffix('.path') if key == 'model.path' else key}=…"


def _strip_union_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Drops the discriminator values that pydantic inserts after the names of sections that are unions.

    Those of unions in lists are written <…> in the schema.
    """
    tagged = {"model", "data", "optimizer", "scheduler"}
    return [
        part
        for index, part in enumerate(location)
        if (index == 0 or location[index - 1] not in tagged or index > 1) and not str(part).startswith("<")
    ]


def _format_input(value: Any) -> str:
    return "null" if value is None else str(value)

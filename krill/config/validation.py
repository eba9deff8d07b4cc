"""From the composed configuration to typed objects, with every error told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from krill.errors import UsageError

SchemaT = TypeVar("SchemaT", bound=BaseModel)


RENAMED_KEYS = {
    "sweep.slots": "sweep.max_parallel",
    "data.shards": "data.num_tasks",
    "data.shard": "data.task",
    "data.near": "data.minhash",
    "guard": "skip_step",
    "judge_bytes": "eval_bytes",
}

REMOVED_KEYS = {"optimizer.backend": "Muon is always krill's; leave the key out"}


def validate_config(schema: type[SchemaT], composed: DictConfig) -> SchemaT:
    """The typed configuration, or UsageError that lists all that is missing or wrong."""
    missing = _find_missing_keys(OmegaConf.to_container(composed, resolve=False))
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationToMissingValueError as error:
        raise UsageError("\n".join(map(_format_not_set, missing))) from error
    except InterpolationKeyError as error:
        followed = _first_line(error).partition("'")[2].partition("'")[0]
        raise UsageError(
            f"{error.full_key} follows {followed}, which is not set; write one of them"
        ) from error
    except OmegaConfBaseException as error:
        of_resolver = _first_line(error).partition(" raised while resolving interpolation: ")[2]
        raise UsageError(f"{error.full_key}: {of_resolver}" if of_resolver else _first_line(error)) from error
    wrong = [*map(_format_not_set, missing)]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        wrong += _format_errors(error, list(iterate_dotted_keys(values)), missing)
    if wrong:
        raise UsageError("\n".join(wrong))
    return config


def _find_missing_keys(values: Any, prefix: str = "") -> list[str]:
    """Keys of mappings whose value is ???, without resolving what follows them."""
    if not isinstance(values, Mapping):
        return [prefix] if values == "???" else []
    return [
        name
        for key, value in values.items()
        for name in _find_missing_keys(value, f"{prefix}.{key}" if prefix else key)
    ]


def iterate_dotted_keys(values: Any, prefix: str = "") -> Iterable[str]:
    """Every dotted key of a nested mapping, sections included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from iterate_dotted_keys(value, f"{prefix}{key}.")


def find_closest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely was meant to be; also by the last part of a dotted key."""
    names = list(dict.fromkeys(known))
    direct = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if direct:
        return direct[0]
    by_leaf = [key for key in names if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    if by_leaf:
        return by_leaf[0]
    leaves = {key.rsplit(".", 1)[-1]: key for key in reversed(names)}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.7)
    return leaves[near[0]] if near else None


def find_renamed_key(key: str) -> str | None:
    """Returns today's name of a key that had another name before 0.1.0, or None."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def format_unknown_key_error(key: str, known: Iterable[str]) -> str:
    """Returns the error message for a key that does not exist, with the name that was most likely meant."""
    if renamed := find_renamed_key(key):
        return f"no such key '{key}': it was renamed. Use {renamed}=…"
    if key in REMOVED_KEYS:
        return f"no such key '{key}': it was removed. {REMOVED_KEYS[key]}"
    near = find_closest_name(key, (name for name in known if name != key))
    return f"no such key '{key}'." + (f" Did you mean {near}?" if near else " All keys: --cfg job")


def _format_errors(error: ValidationError, known: list[str], missing: list[str]) -> Iterable[str]:
    told = set()
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in _strip_union_tags(item["loc"]))
        if key in missing:
            continue
        if item["type"].endswith(("_parsing", "_type")):  # keys that follow another repeat its fault
            fault = (item["type"], str(item["input"]))
            if fault in told:
                continue
            told.add(fault)
        if item["type"] == "extra_forbidden":
            yield format_unknown_key_error(key, known)
        elif item["type"] == "missing":
            yield _format_not_set(key)
        elif item["type"].startswith("union_tag"):
            context = item.get("ctx", {})
            yield f"{key}: {context.get('tag', 'nothing')!r} is none of {context.get('expected_tags', '')}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield f"{key}: {message}" if key else message
        else:
            yield f"{key}={_format_input(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _format_not_set(key: str) -> str:
    return f"{key} is not set; write {key.removesuffix('.path') if key == 'model.path' else key}=…"


def _strip_union_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Pydantic puts the discriminator's value behind the name of the section it chose."""
    tagged = {"model", "data", "optimizer", "scheduler"}
    return [
        part
        for index, part in enumerate(location)
        if index == 0 or location[index - 1] not in tagged or index > 1
    ]


def _format_input(value: Any) -> str:
    return "null" if value is None else str(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

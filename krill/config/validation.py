"""From the composed configuration to typed objects, with every error told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from krill.errors import UsageError

Config = TypeVar("Config", bound=BaseModel)


def validated(schema: type[Config], composed: DictConfig) -> Config:
    """The typed configuration, or UsageError that lists all that is missing or wrong."""
    missing = _missing(OmegaConf.to_container(composed, resolve=False))
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationToMissingValueError as error:
        raise UsageError("\n".join(map(_not_set, missing))) from error
    except InterpolationKeyError as error:
        followed = _first_line(error).partition("'")[2].partition("'")[0]
        raise UsageError(
            f"{error.full_key} follows {followed}, which is not set; write one of them"
        ) from error
    except OmegaConfBaseException as error:
        of_resolver = _first_line(error).partition(" raised while resolving interpolation: ")[2]
        raise UsageError(f"{error.full_key}: {of_resolver}" if of_resolver else _first_line(error)) from error
    wrong = [*map(_not_set, missing)]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        wrong += _sentences(error, list(flat_keys(values)), missing)
    if wrong:
        raise UsageError("\n".join(wrong))
    return config


def _missing(values: Any, prefix: str = "") -> list[str]:
    """Keys of mappings whose value is ???, without resolving what follows them."""
    if not isinstance(values, Mapping):
        return [prefix] if values == "???" else []
    return [
        name
        for key, value in values.items()
        for name in _missing(value, f"{prefix}.{key}" if prefix else key)
    ]


def flat_keys(values: Any, prefix: str = "") -> Iterable[str]:
    """Every dotted key of a nested mapping, sections included."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from flat_keys(value, f"{prefix}{key}.")


def closest(name: str, known: Iterable[str]) -> str | None:
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


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist."""
    near = closest(key, (name for name in known if name != key))
    return f"no such key '{key}'." + (f" Did you mean {near}?" if near else " All keys: --cfg job")


def _sentences(error: ValidationError, known: list[str], missing: list[str]) -> Iterable[str]:
    told = set()
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in _without_tags(item["loc"]))
        if key in missing:
            continue
        if item["type"].endswith(("_parsing", "_type")):  # keys that follow another repeat its fault
            fault = (item["type"], str(item["input"]))
            if fault in told:
                continue
            told.add(fault)
        if item["type"] == "extra_forbidden":
            yield unknown_key(key, known)
        elif item["type"] == "missing":
            yield _not_set(key)
        elif item["type"].startswith("union_tag"):
            context = item.get("ctx", {})
            yield f"{key}: {context.get('tag', 'nothing')!r} is none of {context.get('expected_tags', '')}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            yield f"{key}: {message}" if key else message
        else:
            yield f"{key}={_shown(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _not_set(key: str) -> str:
    return f"{key} is not set; write {key.removesuffix('.path') if key == 'model.path' else key}=…"


def _without_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Pydantic puts the discriminator's value behind the name of the section it chose."""
    tagged = {"model", "data", "optimizer", "scheduler"}
    return [
        part
        for index, part in enumerate(location)
        if index == 0 or location[index - 1] not in tagged or index > 1
    ]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

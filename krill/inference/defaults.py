"""Resolves sampling parameters: those set by the user, else by the model's files, else krill's defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from krill.config.schema import InferConfig
from krill.errors import UsageError
from krill.inference.sampling import SamplingParams

MODEL_KEYS = frozenset(field.name for field in fields(SamplingParams)) - {"stop", "seed"}
"""Parameters that generation_config.json may set."""
NEUTRAL = SamplingParams(temperature=1, top_p=1, repetition_penalty=1)
"""Parameters that leave the distribution of the model as it is: transformers' and OpenAI's defaults."""


def parse_param(key: str, value: Any) -> Any:
    """Returns a value as the key of krill-infer of that name reads it. Raises ValueError if it is not valid."""
    info = InferConfig.model_fields[key]
    adapter: TypeAdapter[Any] = TypeAdapter(
        Annotated[info.annotation, info],  # type: ignore[arg-type]
        config=ConfigDict(allow_inf_nan=False),
    )
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(message[0].lower() + message[1:]) from error


def read_model_defaults(folder: Path) -> dict[str, Any]:
    """Returns the parameters that generation_config.json in a model's folder sets; none for a file without any.

    `do_sample: false` is temperature 0. Raises UsageError if the file is damaged, or a value is not valid.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        set_values = {key: content[key] for key in MODEL_KEYS & content.keys() if content[key] is not None}
        if any(
            isinstance(value, bool) or not isinstance(value, (int, float)) for value in set_values.values()
        ):
            raise ValueError("a parameter is not a number")
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path}: not a generation_config.json ({error}); restore it, or remove it"
        ) from error
    if content.get("do_sample") is False:
        set_values["temperature"] = 0
    return {key: _parse_default(path, key, value) for key, value in set_values.items()}


def _parse_default(path: Path, key: str, value: Any) -> Any:
    try:
        return parse_param(key, value)
    except ValueError as error:
        raise UsageError(f"{path}: {key} {value}: {error}; correct it there, or remove it") from error


def read_eos_ids(folder: Path) -> frozenset[int]:
    """Returns the tokens that end an answer by the files in a model's folder, as transformers reads them."""
    for name in ("generation_config.json", "config.json"):
        try:
            configured = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):  # load_weights reports a damaged one
            continue
        if configured is not None:
            return to_eos_ids(configured)
    return frozenset()


def to_eos_ids(configured: Any) -> frozenset[int]:
    """Returns the ids in an eos_token_id of transformers: a list, a single id, or None.

    Raises UsageError for anything else.
    """
    ids = configured if isinstance(configured, list) else [configured]
    if not all(token is None or type(token) is int for token in ids):
        raise UsageError(
            f"eos_token_id {configured!r} of the model is neither a token id nor a list of them; correct it in "
            "generation_config.json or config.json"
        )
    return frozenset(token for token in ids if token is not None)


def resolve_params(
    settings: Mapping[str, Any], model_defaults: Mapping[str, Any], base: SamplingParams | None = None
) -> SamplingParams:
    """Returns the parameters of an answer.

    `settings`: what the user sets, None for what is left to the model. `base`: the values that neither of them sets;
    krill's defaults if it is None.
    """
    set_values = {key: value for key, value in settings.items() if value is not None}
    defaults = base or SamplingParams()
    values = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    return SamplingParams(**(values | dict(model_defaults) | set_values))


def describe_params(settings: Mapping[str, Any], model_defaults: Mapping[str, Any]) -> list[str]:
    """Returns a line per origin of the parameters: what the user sets, the model's file, krill's defaults."""
    set_values = {key: value for key, value in settings.items() if value not in (None, (), [])}
    others = {key: value for key, value in model_defaults.items() if key not in set_values}
    krills = {
        field.name: field.default
        for field in fields(SamplingParams)
        if field.name not in (*set_values, *others)
        and (field.name == "max_new_tokens" or field.default != getattr(NEUTRAL, field.name))
    }
    origins = {"set": set_values, "generation_config.json": others, "krill's defaults": krills}
    return [
        f"{origin}: {', '.join(f'{key} {_format_value(value)}' for key, value in sorted(values.items()))}"
        for origin, values in origins.items()
        if values
    ]


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The base of every section of the configuration, and the types of values that several sections share."""

from __future__ import annotations

import os
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from krill.config.number_limits import MAX_COUNT, MAX_FLOAT, MAX_INT, MAX_PROCESSES


class UnsignedMarker:
    """Marks a field that `krill.config.signature` leaves out of signatures."""


T = TypeVar("T")
Unsigned = Annotated[T, UnsignedMarker()]
"""The type of a field that is not part of the signature of a result: it does not change the result (where it
is computed, how often progress is reported), or it counts in another way (data by its content, batch by the
rows of a step)."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # --cfg, completion and the parent of a sweep import schemas that they do not use
    )

    @classmethod
    def get_unsigned_keys(cls) -> frozenset[str]:
        """Returns the keys whose type is `Unsigned[...]`."""
        return frozenset(
            key
            for key, field in cls.model_fields.items()
            if any(isinstance(item, UnsignedMarker) for item in field.metadata)
        )


Size = Annotated[int, Field(gt=0, le=MAX_INT)]
"""The length of one axis, or a number of steps."""

Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
"""A positive number of bytes, tokens or documents."""

CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""A number of bytes, tokens or documents."""

Processes = Annotated[int, Field(gt=0, le=MAX_PROCESSES)]
"""A positive number of processes, threads or machines."""

ProcessesOrZero = Annotated[int, Field(ge=0, le=MAX_PROCESSES)]
"""A number of processes or devices."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every library accepts; NumPy's are the smallest."""

Rate = Annotated[float, Field(gt=0.0, le=MAX_FLOAT)]
"""A positive number that fp32 represents."""

RateOrZero = Annotated[float, Field(ge=0.0, le=MAX_FLOAT)]
"""A number that fp32 represents, not negative."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A number in [0, 1): unlike a Share it is never 1."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""A number in [0, 1]: unlike a Fraction it may be 1."""

PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
"""A number in (0, 1]: unlike a Share it is never 0."""


def _validate_folder_name(value: str) -> str:
    if not value or value[0] in ".~" or any(letter in "/\\" or letter < " " for letter in value):
        raise ValueError(
            f"{value!r} is not a folder name: use one without / and \\ that does not begin with . or ~; "
            "set output= for another folder"
        )
    if len(value.encode()) > 200:
        raise ValueError(f"is {len(value.encode())} bytes long; use a name of at most 200 bytes")
    return value


FolderName = Annotated[str, AfterValidator(_validate_folder_name)]
"""A string that is a valid name of a folder, of at most 200 bytes in UTF-8."""


def validate_unicode(value: str) -> str:
    """Returns `value`. Raises ValueError if it has a byte that is not UTF-8, or half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid UTF-8 (character {error.start + 1})") from error
    return value


OutputPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path that is written to. Not every shell replaces ~ in output=~/X."""


def to_list(value: object) -> object:
    """Returns a list with `value` if it is a single string or mapping, otherwise `value`."""
    return [value] if isinstance(value, (str, dict)) else value


def _read_run_name(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f"{value} is read as a number; put the name of the run in quotes")
    return str(value) if type(value) is int else value


RunNameValidator = BeforeValidator(_read_run_name)
"""Takes digits as the text of a name or signature, and refuses other numbers, such as 1e10 in YAML."""

RunName = Annotated[str, RunNameValidator]
"""What names a run, whose signature may have only digits."""

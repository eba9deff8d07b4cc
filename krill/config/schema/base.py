"""The base of every section of the configuration, and the types of values that several sections share."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class UnsignedMarker:
    """Metadata of a field that `krill.config.signature` leaves out of the identity."""


T = TypeVar("T")
Unsigned = Annotated[T, UnsignedMarker()]
"""`Unsigned[int]`: an int that does not determine what a command makes (where it runs, how often it reports), or that
counts in another way (data by its content, batch by the rows of a step)."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @classmethod
    def unsigned_keys(cls) -> frozenset[str]:
        """Returns the keys whose type is `Unsigned[...]`."""
        return frozenset(
            key
            for key, field in cls.model_fields.items()
            if any(isinstance(item, UnsignedMarker) for item in field.metadata)
        )


Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _validate_folder_name(value: str) -> str:
    if not value or value[0] in ".~" or any(letter in "/\\" or letter < " " for letter in value):
        raise ValueError(
            f"{value!r} names no folder: no / or \\ in it, no . or ~ in front; another place is output="
        )
    if len(value.encode()) > 200:
        raise ValueError(f"is {len(value.encode())} bytes long; a name has at most 200")
    return value


FolderName = Annotated[str, AfterValidator(_validate_folder_name)]


def to_list(value: object) -> object:
    return [value] if isinstance(value, (str, dict)) else value

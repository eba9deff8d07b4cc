"""The table of devices: peak FLOP/s, memory, bandwidth and power of each, with the source of its figures.

`krill/devices.yaml` has those that krill knows; a file of the user's own adds others, or replaces some.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from omegaconf._utils import get_yaml_loader
from pydantic import BeforeValidator, Field, ValidationError

from krill.config.paths import expand_home
from krill.config.schema.base import Section
from krill.config.suggestions import suggest
from krill.errors import UsageError

TABLE_FILE = Path(__file__).with_name("devices.yaml")

MIN_FIGURE, MAX_FIGURE = 1e-3, 1e7
"""The limits of each figure in the unit of the table: larger ones are in another unit, such as bytes or FLOP/s."""

UNITS = (
    "a device has tflops in 10¹² FLOP/s (fp32, and bf16, fp8 if it has them), memory in 10⁹ bytes, bandwidth in 10⁹ "
    "bytes per second, power in watts, source"
)


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a valid number")
    return value


Figure = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=MIN_FIGURE, le=MAX_FIGURE)]


class _TflopsEntry(Section):
    bf16: Figure | None = None
    fp8: Figure | None = None
    fp32: Figure


class _DeviceEntry(Section):
    match: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    tflops: _TflopsEntry
    memory: Figure
    bandwidth: Figure
    power: Figure | None = None
    source: str


@dataclass(frozen=True)
class Device:
    """A device on which a run is planned."""

    name: str
    kind: str
    """cuda or cpu."""
    peak_flops: dict[str, float]
    """Precision (bf16, fp8, tf32, fp32) → FLOP/s of matrix products; a precision that it lacks is not in it."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes per second."""
    power: float | None
    """Watts; None: unknown."""
    source: str
    """Where the figures are from."""

    def __hash__(self) -> int:
        return hash((self.name, self.memory, self.source))


def list_devices(file: str | None = None) -> dict[str, Device]:
    """Returns the devices by name, those of the user's `file` first. Raises UsageError for an invalid file."""
    return {name: device for name, (device, _) in _read_tables(file).items()}


def get_device(name: str, file: str | None = None) -> Device:
    """Returns the device `name`. Raises UsageError, which names similar ones, if no table has it."""
    devices = list_devices(file)
    if name not in devices:
        similar = name.lower() if name.lower() in devices else name
        raise UsageError(
            f"plan.device={name}: no such device. {suggest(similar, devices, 'plan.device={}')}, or describe your "
            "own in a YAML file and set plan.devices=FILE (docs/plan.md)"
        )
    return devices[name]


def find_device(driver_name: str, file: str | None = None) -> Device | None:
    """Returns the device that a driver reports as `driver_name`, "NVIDIA H100 80GB HBM3"; None: not in the tables.

    `file`: the user's own table, which comes first.
    """
    for device, parts in _read_tables(file).values():
        if any(part in driver_name for part in parts):
            return device
    return None


def _read_tables(file: str | None) -> dict[str, tuple[Device, list[str]]]:
    """Returns the devices of the user's `file`, then those of krill's table that it does not replace."""
    known = _read_table(TABLE_FILE)
    if file is None:
        return known
    own = _read_table(expand_home(file))
    return own | {name: entry for name, entry in known.items() if name not in own}


@lru_cache(maxsize=8)
def _read_table(file: Path) -> dict[str, tuple[Device, list[str]]]:
    """Returns the devices of a file, and the parts of their drivers' names."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), get_yaml_loader())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"plan.devices={file}: {' '.join(str(error).split())}; use a YAML file as in docs/plan.md"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(
            f"plan.devices={file}: not a mapping of names to devices; write it as in docs/plan.md"
        )
    return {str(name): _build_device(str(name), value, file) for name, value in values.items()}


def _build_device(name: str, value: Any, file: Path) -> tuple[Device, list[str]]:
    try:
        entry = _DeviceEntry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (name, *first["loc"])))
        problem = (
            "not a mapping" if first["type"] == "model_type" else first["msg"].removeprefix("Value error, ")
        )
        raise UsageError(f"plan.devices={file}: {key}: {problem}; {UNITS}") from error
    peak = {key: 1e12 * tflops for key, tflops in entry.tflops if tflops is not None}
    if entry.tflops.bf16 is not None:
        peak["tf32"] = peak["bf16"] / 2  # in every data sheet
    device = Device(
        name=name,
        kind="cuda",
        peak_flops=peak,
        memory=round(1e9 * entry.memory),
        bandwidth=1e9 * entry.bandwidth,
        power=entry.power,
        source=entry.source,
    )
    return device, list(entry.match)

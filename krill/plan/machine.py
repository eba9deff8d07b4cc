"""What was measured on a machine, kept for its later plans in the user's cache.

$XDG_CACHE_HOME/krill/calibration/<hash of the machine>.json     (~/.cache where the variable is not set)

KRILL_CALIBRATION names another folder; with KRILL_CALIBRATION=off nothing is read or kept. A machine is its kind of
processor or GPU, their number, and the version of torch. A file that is damaged is reported and ignored.
"""

from __future__ import annotations

import logging
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from krill import atomic
from krill.checksum import ChecksumError, format_checksummed_json, read_checksummed_json
from krill.config.signature import compute_signature
from krill.plan.step_time import Calibration, Measurement
from krill.resources import count_cpu_cores

log = logging.getLogger("krill")

FOLDER_VARIABLE = "KRILL_CALIBRATION"

CALIBRATION_FORMAT = 1
"""Of the file, and of what its figures mean: those of another version are not read."""

MAX_PER_CONFIGURATION, MAX_MEASUREMENTS = 5, 200
"""The newest measurements that are kept: of one configuration, and in total."""

KEEP_SECONDS = 10.0
"""How long to wait for another process that is writing; after that nothing is kept."""


@dataclass(frozen=True)
class Machine:
    """A machine, and the file of its measurements."""

    name: str
    """AMD EPYC, 2 cores; or NVIDIA H100 80GB HBM3, 8 of them."""
    torch: str
    alone: Measurement | None = None
    """What was measured now, which counts alone; None: what is in the file."""

    @property
    def file(self) -> Path | None:
        """The file of its measurements; None: none are kept."""
        folder = get_calibration_folder()
        signature = compute_signature("calibration", CALIBRATION_FORMAT, self.name, self.torch)
        return folder and folder / f"{signature[:16]}.json"

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What was measured on it, the oldest first."""
        if self.alone is not None:
            return (self.alone,)
        state = self._read_state()
        return _read_file(*state) if state else ()

    def _read_state(self) -> tuple[Path, int, int] | None:
        """Returns the file of the measurements, and time and size of its content; None if there is none."""
        file = self.file
        try:
            status = file.stat() if file else None
        except OSError:
            return None
        return (file, status.st_mtime_ns, status.st_size) if file and status else None

    def get_calibration(self, group: str, kind: str, bandwidth: float) -> Calibration | None:
        """Returns the measurements of a group, prepared once for all points of a sweep; None: there are none.

        `kind`: cpu or cuda. `bandwidth`: bytes per second of the device by its table.
        """
        if self.alone is not None:
            return _build_calibration((self.alone,), group, kind, bandwidth)
        state = self._read_state()
        return state and _read_calibration(*state, group, kind, bandwidth)

    def keep(self, measurement: Measurement) -> Path | None:
        """Adds a measurement to the file, and removes the oldest; returns the file, None if it cannot be written."""
        file = self.file
        if file is None:
            return None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock"), timeout=KEEP_SECONDS):
                kept = select_newest([*_parse_file(file), measurement])
                content = {
                    "machine": self.name,
                    "torch": self.torch,
                    "measurements": [one.model_dump(mode="json") for one in kept],
                }
                atomic.write_text(file, format_checksummed_json(content))
        except (OSError, Timeout) as error:
            log.info("calibration not kept in %s: %s", file, error)
            return None
        return file


def identify_machine(gpu: str | None = None, count: int = 1) -> Machine:
    """Returns this machine. `gpu`, `count`: name and number of its GPUs; None: its CPU."""
    name = f"{_read_cpu_name()}, {count_cpu_cores()} cores" if gpu is None else f"{gpu}, {count} of them"
    return Machine(name, _read_torch_version())


def get_calibration_folder() -> Path | None:
    """Returns the folder of the measurements; None: KRILL_CALIBRATION=off, or there is no cache."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        return None if folder == "off" else Path(folder)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return cache / "krill" / "calibration"


def select_newest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Returns the measurements that are kept, in their order: the newest of each configuration, and of all."""
    counts: Counter[tuple[str, str]] = Counter()
    kept: list[Measurement] = []
    for one in reversed(measurements):
        key = (one.configuration, one.kind)
        counts[key] += 1
        if counts[key] <= MAX_PER_CONFIGURATION and len(kept) < MAX_MEASUREMENTS:
            kept.append(one)
    return kept[::-1]


@lru_cache(maxsize=64)
def _read_calibration(
    file: Path, mtime_ns: int, size: int, group: str, kind: str, bandwidth: float
) -> Calibration | None:
    return _build_calibration(_read_file(file, mtime_ns, size), group, kind, bandwidth)


def _build_calibration(
    measurements: Sequence[Measurement], group: str, kind: str, bandwidth: float
) -> Calibration | None:
    selected = [one for one in measurements if one.group == group]
    return Calibration(selected, kind, bandwidth) if selected else None


@lru_cache(maxsize=4)
def _read_file(file: Path, mtime_ns: int, size: int) -> tuple[Measurement, ...]:
    """Reads a file once for all points of a sweep; `mtime_ns` and `size` are those of its content."""
    return _parse_file(file)


def _parse_file(file: Path) -> tuple[Measurement, ...]:
    """Returns the measurements in a file; none, and a warning in the log, if it is damaged."""
    try:
        values = read_checksummed_json(file)["measurements"]
        return tuple(Measurement.model_validate(value) for value in values)
    except FileNotFoundError:
        return ()
    except (OSError, ChecksumError, ValidationError, KeyError, TypeError) as error:
        problem = (
            error.problem if isinstance(error, ChecksumError) else f"cannot be read ({_join_lines(error)})"
        )
        log.warning("calibration %s %s; it is ignored, remove it", file, problem)
        return ()


def _join_lines(error: Exception) -> str:
    return " ".join(str(error).split())


@lru_cache(maxsize=1)
def _read_torch_version() -> str:
    """Returns the version of torch, which is not imported."""
    return metadata.version("torch")


@lru_cache(maxsize=1)
def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()

"""Waiting for jobs of SLURM: what becomes of them, said as it happens."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from krill.runs import slurm
from krill.runs.record import last_metrics, read_status
from krill.runs.standing import GOES_ON, Standing, standings

log = logging.getLogger("krill")

PAUSES = (1.0, 10.0)
"""Seconds between two looks: at first, and after some minutes."""
LATE = 15.0
"""Seconds that the accounting may need to learn how a job ended."""
QUIET = 60.0
"""Seconds after which is said how far all are, when nothing else was."""


def watch(runs: Mapping[Path, str]) -> None:
    """Say when a run (folder → name) begins and ends, and how far they are, until all have ended."""
    began = said = time.monotonic()
    before: dict[Path, Standing] = {}
    while True:
        now = standings(list(runs))
        for folder, name in runs.items():
            if before.get(folder) is None or now[folder].state != before[folder].state:
                log.info("%s: %s", name, _words(now[folder]))
                said = time.monotonic()
        before = now
        if not any(stands.state in GOES_ON for stands in now.values()):
            break
        if time.monotonic() - said > QUIET:
            log.info(_progress(now))
            said = time.monotonic()
        time.sleep(_pause(began))
    until = time.monotonic() + LATE
    while time.monotonic() < until and any(slurm.UNKNOWN in stands.why for stands in before.values()):
        time.sleep(1.0)
        before = standings(list(runs))


def _words(stands: Standing) -> str:
    return " ".join(filter(None, (stands.state, f"(job {stands.job})" if stands.job else "", stands.why)))


def _progress(now: Mapping[Path, Standing]) -> str:
    states = [stands.state for stands in now.values()]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    running = next((folder for folder, stands in now.items() if stands.state == "running"), None)
    last = last_metrics(running, ("step",)) if running else {}
    if running and last:
        total = (read_status(running) or {}).get("steps", "?")
        parts.append(f"{running.name} at step {last['step']} of {total}")
    return ", ".join(parts)


def _pause(began: float) -> float:
    return min(PAUSES[1], max(PAUSES[0], (time.monotonic() - began) / 30))


class Followed:
    """One job, whose messages are shown as they come."""

    def __init__(self, folder: Path, job: str):
        self.job = job
        self.out, self.err = slurm.printed(folder, job, "out"), slurm.printed(folder, job, "err")
        self._read = 0

    def until_it_ends(self) -> None:
        """Show what it says; return when SLURM is through with it."""
        began, state = time.monotonic(), ""
        while True:
            now = slurm.job_states([self.job]).get(self.job, state)
            self._show()
            if now != state:
                log.info("job %s: %s", self.job, now.lower())
                state = now
            if state and state not in slurm.LIVING:
                break
            time.sleep(_pause(began))
        self._show()

    def final_state(self) -> str:
        """How SLURM says it ended."""
        until = time.monotonic() + LATE
        while True:
            state = slurm.job_states([self.job]).get(self.job, slurm.UNKNOWN)
            if state != slurm.UNKNOWN or time.monotonic() > until:
                return state
            time.sleep(1.0)

    def _show(self) -> None:
        try:
            with open(self.err, "rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        self._read += len(text)
        sys.stderr.buffer.write(text)
        sys.stderr.flush()

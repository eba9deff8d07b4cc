"""Waiting for jobs of SLURM: what becomes of them, said as it happens."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from krill.runs import slurm
from krill.runs.record import read_last_metrics, read_status
from krill.runs.run_state import ACTIVE_STATES, RunState, get_run_states

log = logging.getLogger("krill")

POLL_SECONDS_RANGE = (1.0, 10.0)
"""Seconds between two looks: at first, and after some minutes."""
ACCOUNTING_TIMEOUT = 15.0
"""Seconds that the accounting may need to learn how a job ended."""
PROGRESS_SECONDS = 60.0
"""Seconds after which is said how far all are, when nothing else was."""


def monitor_runs(runs: Mapping[Path, str]) -> None:
    """Say when a run (folder → name) begins and ends, and how far they are, until all have ended."""
    began = said = time.monotonic()
    before: dict[Path, RunState] = {}
    while True:
        now = get_run_states(list(runs))
        for folder, name in runs.items():
            if before.get(folder) is None or now[folder].state != before[folder].state:
                log.info("%s: %s", name, _format_state(now[folder]))
                said = time.monotonic()
        before = now
        if not any(stands.state in ACTIVE_STATES for stands in now.values()):
            break
        if time.monotonic() - said > PROGRESS_SECONDS:
            log.info(_format_progress(now))
            said = time.monotonic()
        time.sleep(_get_poll_seconds(began))
    until = time.monotonic() + ACCOUNTING_TIMEOUT
    while time.monotonic() < until and any(
        slurm.UNKNOWN_JOB_STATE in stands.detail for stands in before.values()
    ):
        time.sleep(1.0)
        before = get_run_states(list(runs))


def _format_state(stands: RunState) -> str:
    return " ".join(filter(None, (stands.state, f"(job {stands.job})" if stands.job else "", stands.detail)))


def _format_progress(now: Mapping[Path, RunState]) -> str:
    states = [stands.state for stands in now.values()]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    running = next((folder for folder, stands in now.items() if stands.state == "running"), None)
    last = read_last_metrics(running, ("step",)) if running else {}
    if running and last:
        total = (read_status(running) or {}).get("steps", "?")
        parts.append(f"{running.name} at step {last['step']} of {total}")
    return ", ".join(parts)


def _get_poll_seconds(began: float) -> float:
    return min(POLL_SECONDS_RANGE[1], max(POLL_SECONDS_RANGE[0], (time.monotonic() - began) / 30))


class JobMonitor:
    """One job, whose messages are shown as they come."""

    def __init__(self, folder: Path, job: str):
        self.job = job
        self.stdout_file, self.stderr_file = (
            slurm.get_job_output_file(folder, job, "out"),
            slurm.get_job_output_file(folder, job, "err"),
        )
        self._offset = 0

    def follow(self) -> None:
        """Show what it says; return when SLURM is through with it."""
        began, state = time.monotonic(), ""
        while True:
            now = slurm.query_job_states([self.job]).get(self.job, state)
            self._print_new_lines()
            if now != state:
                log.info("job %s: %s", self.job, now.lower())
                state = now
            if state and state not in slurm.ACTIVE_JOB_STATES:
                break
            time.sleep(_get_poll_seconds(began))
        self._print_new_lines()

    def wait_for_final_state(self) -> str:
        """How SLURM says it ended."""
        until = time.monotonic() + ACCOUNTING_TIMEOUT
        while True:
            state = slurm.query_job_states([self.job]).get(self.job, slurm.UNKNOWN_JOB_STATE)
            if state != slurm.UNKNOWN_JOB_STATE or time.monotonic() > until:
                return state
            time.sleep(1.0)

    def _print_new_lines(self) -> None:
        try:
            with open(self.stderr_file, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        self._offset += len(text)
        sys.stderr.buffer.write(text)
        sys.stderr.flush()

"""Waiting for SLURM jobs: their states and messages are printed as they change."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from krill.runs import slurm
from krill.runs.json_lines import read_last_metrics
from krill.runs.record import read_status
from krill.runs.run_state import ACTIVE_STATES, RunState, get_run_states

log = logging.getLogger("krill")

POLL_SECONDS_RANGE = (1.0, 10.0)
"""Seconds between two queries: at first, and after some minutes."""
ACCOUNTING_TIMEOUT = 15.0
"""Seconds until SLURM's accounting knows how a job ended."""
PROGRESS_SECONDS = 60.0
"""Seconds without other messages after which the progress of all runs is logged."""


def monitor_runs(runs: Mapping[Path, str]) -> None:
    """Logs when a run (folder → label) starts and ends, and the progress of all, until all have ended."""
    start = last_message = time.monotonic()
    previous: dict[Path, RunState] = {}
    while True:
        states = get_run_states(list(runs))
        for folder, label in runs.items():
            if previous.get(folder) is None or states[folder].state != previous[folder].state:
                log.info("%s: %s", label, _format_state(states[folder]))
                last_message = time.monotonic()
        previous = states
        if not any(run.state in ACTIVE_STATES for run in states.values()):
            break
        if time.monotonic() - last_message > PROGRESS_SECONDS:
            log.info(_format_progress(states))
            last_message = time.monotonic()
        time.sleep(_get_poll_seconds(start))
    deadline = time.monotonic() + ACCOUNTING_TIMEOUT
    while time.monotonic() < deadline and any(
        slurm.UNKNOWN_JOB_STATE in run.detail for run in previous.values()
    ):
        time.sleep(1.0)
        previous = get_run_states(list(runs))


def _format_state(run: RunState) -> str:
    return " ".join(filter(None, (run.state, f"(job {run.job})" if run.job else "", run.detail)))


def _format_progress(runs: Mapping[Path, RunState]) -> str:
    states = [run.state for run in runs.values()]
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    running = next((folder for folder, run in runs.items() if run.state == "running"), None)
    last = read_last_metrics(running, ("step",))[0] if running else {}
    if running and last:
        total = (read_status(running) or {}).get("steps")
        parts.append(f"{running.name} at step {last['step']}{f' of {total}' if total else ''}")
    return ", ".join(parts)


def _get_poll_seconds(start: float) -> float:
    shortest, longest = POLL_SECONDS_RANGE
    return min(longest, max(shortest, (time.monotonic() - start) / 30))


class JobMonitor:
    """Prints the messages of one job as they are written."""

    def __init__(self, folder: Path, job: str):
        self.job = job
        self.stdout_file = slurm.get_job_output_file(folder, job, "out")
        self.stderr_file = slurm.get_job_output_file(folder, job, "err")
        self._offset = 0

    def follow(self) -> None:
        """Prints its messages and states until the job is no longer active."""
        start, state = time.monotonic(), ""
        while True:
            now = slurm.query_job_states([self.job]).get(self.job, state)
            self._print_new_lines()
            if now != state:
                log.info("job %s: %s", self.job, now.lower())
                state = now
            if state and state not in slurm.ACTIVE_JOB_STATES:
                break
            time.sleep(_get_poll_seconds(start))
        self._print_new_lines()

    def wait_for_final_state(self) -> str:
        """Returns SLURM's final state of the job, for which the accounting may need some seconds."""
        deadline = time.monotonic() + ACCOUNTING_TIMEOUT
        while True:
            state = slurm.query_job_states([self.job]).get(self.job, slurm.UNKNOWN_JOB_STATE)
            if state != slurm.UNKNOWN_JOB_STATE or time.monotonic() > deadline:
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

"""Tests that a signal during training stops the run at the end of the step, and before and after it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from transformers import TrainerControl

from krill.errors import SignalInterrupt
from krill.signals import EXIT_CODES, raise_on_signal
from krill.training.callbacks.signals import EvaluationInterrupted, StopOnSignal

UNUSED: Any = None
EXPECTED_CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75, "SIGUSR2": 75}


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_exit_codes_of_signals() -> None:
    assert {number.name: code for number, code in EXIT_CODES.items()} == EXPECTED_CODES


@pytest.mark.parametrize("number", list(EXIT_CODES), ids=lambda number: number.name)
def test_a_signal_during_training_saves_and_stops(number: signal.Signals) -> None:
    control = TrainerControl()
    with StopOnSignal() as stop:
        stop.on_train_begin(UNUSED, UNUSED, UNUSED)
        stop.on_step_end(UNUSED, UNUSED, control)
        assert not control.should_training_stop
        send(number)
        stop.on_step_end(UNUSED, UNUSED, control)
        stop.on_train_end(UNUSED, UNUSED, UNUSED)
        assert control.should_save
        assert control.should_training_stop
        with pytest.raises(SignalInterrupt, match=f"{number.name} at step 3 of 9") as raised:
            stop.raise_if_signaled(3, 9)
        assert raised.value.exit_code == EXPECTED_CODES[number.name]


def test_a_signal_in_the_last_step_raises() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(UNUSED, UNUSED, UNUSED)
        send(signal.SIGTERM)
        with pytest.raises(SignalInterrupt, match="SIGTERM at step 9 of 9"):
            stop.raise_if_signaled(9, 9)


def test_iteration_ends_at_the_next_batch() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(UNUSED, UNUSED, UNUSED)
        batches = stop.iterate_until_signal([1, 2, 3])
        assert next(batches) == 1
        send(signal.SIGTERM)
        with pytest.raises(EvaluationInterrupted):
            next(batches)


def test_a_second_sigint_interrupts_at_once() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(UNUSED, UNUSED, UNUSED)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("has_trained", [False, True], ids=["before", "after"])
def test_a_signal_outside_of_training_interrupts_at_once(has_trained: bool) -> None:
    with StopOnSignal() as stop:
        if has_trained:
            stop.on_train_begin(UNUSED, UNUSED, UNUSED)
            stop.on_train_end(UNUSED, UNUSED, UNUSED)
        with pytest.raises(SignalInterrupt) as raised:
            send(signal.SIGTERM)
        assert raised.value.exit_code == 75
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("has_trained", [False, True], ids=["before", "while training"])
def test_a_repeated_signal_does_not_interrupt_the_cleanup(has_trained: bool) -> None:
    """A scheduler signals every process, and a parent forwards the signal."""

    def train_and_stop() -> None:
        with StopOnSignal() as stop:
            if has_trained:
                stop.on_train_begin(UNUSED, UNUSED, UNUSED)
            send(signal.SIGTERM)
            stop.raise_if_signaled(3, 9)

    with raise_on_signal():
        with pytest.raises(SignalInterrupt):
            train_and_stop()
        send(signal.SIGTERM)  # while the status of the run is written


def test_a_signal_after_the_work_does_not_change_the_exit_code() -> None:
    """SLURM sends the signal of a time limit to a job that has finished its run and is shutting down."""
    script = (
        "import os, signal\n"
        "from krill.signals import raise_on_signal\n"
        "numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)\n"
        "for number in numbers:\n"
        "    signal.signal(number, signal.SIG_DFL)\n"
        "with raise_on_signal():\n"
        "    pass\n"
        "for number in numbers:\n"
        "    os.kill(os.getpid(), number)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in EXIT_CODES]
    with StopOnSignal():
        assert [signal.getsignal(number) for number in EXIT_CODES] != before
    assert [signal.getsignal(number) for number in EXIT_CODES] == before

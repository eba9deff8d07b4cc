"""A signal while training is noted and obeyed at the end of the step; before and after it stops at once."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from transformers import TrainerControl

from krill.errors import SignalInterrupt
from krill.signals import EXIT_CODES, raise_on_signal
from krill.training.callbacks.signals import EvaluationInterrupted, StopOnSignal

NOTHING: Any = None
CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75, "SIGUSR2": 75}


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_signals_and_their_exit_codes() -> None:
    assert {number.name: code for number, code in EXIT_CODES.items()} == CODES


@pytest.mark.parametrize("number", list(EXIT_CODES), ids=lambda number: number.name)
def test_while_training_the_state_is_saved_before_it_stops(number: signal.Signals) -> None:
    control = TrainerControl()
    with StopOnSignal() as stop:
        stop.on_train_begin(NOTHING, NOTHING, NOTHING)
        stop.on_step_end(NOTHING, NOTHING, control)
        assert not control.should_training_stop
        send(number)
        stop.on_step_end(NOTHING, NOTHING, control)
        stop.on_train_end(NOTHING, NOTHING, NOTHING)
        assert control.should_save
        assert control.should_training_stop
        with pytest.raises(SignalInterrupt, match=f"{number.name} at step 3 of 9") as stopped:
            stop.raise_if_signaled(3, 9)
        assert stopped.value.exit_code == CODES[number.name]


def test_a_signal_in_the_last_step_is_obeyed_too() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(NOTHING, NOTHING, NOTHING)
        send(signal.SIGTERM)
        with pytest.raises(SignalInterrupt, match="SIGTERM at step 9 of 9"):
            stop.raise_if_signaled(9, 9)


def test_what_is_watched_ends_at_the_next_batch() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(NOTHING, NOTHING, NOTHING)
        batches = stop.iterate_until_signal([1, 2, 3])
        assert next(batches) == 1
        send(signal.SIGTERM)
        with pytest.raises(EvaluationInterrupted):
            next(batches)


def test_a_second_interrupt_does_not_wait() -> None:
    with StopOnSignal() as stop:
        stop.on_train_begin(NOTHING, NOTHING, NOTHING)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("begun", [False, True], ids=["before", "after"])
def test_outside_of_training_there_is_nothing_to_wait_for(begun: bool) -> None:
    with StopOnSignal() as stop:
        if begun:
            stop.on_train_begin(NOTHING, NOTHING, NOTHING)
            stop.on_train_end(NOTHING, NOTHING, NOTHING)
        with pytest.raises(SignalInterrupt) as stopped:
            send(signal.SIGTERM)
        assert stopped.value.exit_code == 75
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("begun", [False, True], ids=["before", "while training"])
def test_a_signal_that_is_repeated_does_not_disturb_what_winds_up(begun: bool) -> None:
    """A scheduler sends it to every process, and a parent passes it on."""

    def stopped() -> None:
        with StopOnSignal() as stop:
            if begun:
                stop.on_train_begin(NOTHING, NOTHING, NOTHING)
            send(signal.SIGTERM)
            stop.raise_if_signaled(3, 9)

    with raise_on_signal():
        with pytest.raises(SignalInterrupt):
            stopped()
        send(signal.SIGTERM)  # the run's record is being written


def test_the_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in EXIT_CODES]
    with StopOnSignal():
        assert [signal.getsignal(number) for number in EXIT_CODES] != before
    assert [signal.getsignal(number) for number in EXIT_CODES] == before

"""Runs the interactive session: a prompt with editing and history, answers that stream, and commands.

Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer or clears the line, Ctrl-D ends.
"""

from __future__ import annotations

import os
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from krill.errors import KrillError
from krill.inference.answerer import Answerer
from krill.inference.prompts import EXIT_COMMANDS
from krill.inference.session_commands import SESSION_COMMANDS, SessionEnd, execute_command


def run_session(
    answerer: Answerer,
    keeps_history: bool = True,
    input: Input | None = None,
    output: Output | None = None,
) -> None:
    """Reads prompts and commands until the user ends the session; answers are written to standard output.

    `input`, `output`: of the prompt; None: the terminal.
    """
    answerer.is_interactive = True
    reader = _build_reader(keeps_history, input, output or create_output(always_prefer_tty=True))
    while True:
        try:
            line = reader.prompt("> ")
        except KeyboardInterrupt:
            answerer.write("Ctrl-D or /quit ends the session")
            continue
        except EOFError:
            return
        if not line.strip():
            continue
        try:  # Ctrl-C ends an answer in answerer.answer
            if line.startswith("/") and not line.startswith("//"):
                execute_command(answerer, line)
            elif line.strip() in EXIT_COMMANDS:
                return
            else:
                answerer.answer(line.removeprefix("/") if line.startswith("//") else line)
        except SessionEnd:
            return
        except KeyboardInterrupt:
            answerer.write("interrupted")
        except KrillError as error:
            answerer.write(str(error))


def _build_reader(keeps_history: bool, input: Input | None, output: Output) -> PromptSession[str]:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=_open_history() if keeps_history else InMemoryHistory(),
        multiline=True,
        prompt_continuation=lambda width, *_: ".".ljust(width),
        key_bindings=bindings,
        completer=WordCompleter([f"/{name}" for name in SESSION_COMMANDS], sentence=True),
        complete_while_typing=False,
        input=input,
        output=output,
    )


def get_history_file() -> Path:
    """Returns the file of what was typed, in the user's folder for the state of programs."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "krill" / "history"


def _open_history() -> History:
    """Returns the history of earlier sessions, for the user alone to read; of this one where it cannot be kept."""
    file = get_history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        with open(file, "ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))

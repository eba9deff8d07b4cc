"""Runs the commands of a session, which begin with a slash. A command is an entry of SESSION_COMMANDS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from krill import atomic
from krill.config.paths import expand_home
from krill.config.suggestions import suggest
from krill.errors import UsageError
from krill.inference.answerer import Answerer
from krill.inference.conversation import Conversation
from krill.inference.defaults import MODEL_KEYS, describe_params, parse_param

SETTABLE_KEYS = (*sorted(MODEL_KEYS), "stop", "seed", "n")


class SessionEnd(Exception):
    """The user ends the session."""


@dataclass(frozen=True)
class Command:
    """A command of a session."""

    usage: str
    """Its arguments, for /help."""
    description: str
    run: Callable[[Answerer, str], None]
    """Gets the text after the name. Raises UsageError for an argument that is not valid."""


def execute_command(answerer: Answerer, line: str) -> None:
    """Runs a line that begins with a slash. Raises UsageError for an unknown command, SessionEnd to end."""
    name, _, argument = line[1:].partition(" ")
    command = SESSION_COMMANDS.get(name)
    if command is None:
        raise UsageError(f"/{name}: no such command. {suggest(name, SESSION_COMMANDS, '/{}')}")
    command.run(answerer, argument.strip())


def _show_help(answerer: Answerer, argument: str) -> None:
    width = max(len(f"{name} {command.usage}") for name, command in SESSION_COMMANDS.items())
    for name, command in SESSION_COMMANDS.items():
        answerer.write(f"/{f'{name} {command.usage}':{width}}  {command.description}")
    answerer.write("Anything else is a prompt; one that begins with / is written with //.")


def _set_key(answerer: Answerer, argument: str) -> None:
    key, _, text = (argument.replace("=", " ", 1) if "=" in argument.split(" ")[0] else argument).partition(
        " "
    )
    if not key:
        _show_settings(answerer)
        return
    if key not in SETTABLE_KEYS:
        raise UsageError(f"{key}: cannot be set here. {suggest(key, SETTABLE_KEYS)}")
    if not text.strip():
        raise UsageError(f"/set {key}: add a value, or null for the model's own")
    answerer.settings[key] = _parse_value(key, text.strip())
    _show_settings(answerer)


def _show_settings(answerer: Answerer) -> None:
    for line in describe_params(answerer.settings, answerer.loaded.defaults):
        answerer.write(line)


def _parse_value(key: str, text: str) -> Any:
    """Returns a value as the configuration's key of that name reads it."""
    value: Any = None if text == "null" else text
    if key == "stop" and text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UsageError(f'/set stop {text}: not a list; use ["text", "text"]') from error
    if value is None and key in ("stop", "seed", "n"):
        value = {"stop": [], "seed": 0, "n": 1}[key]
    try:
        return parse_param(key, value)
    except ValueError as error:
        raise UsageError(f"/set {key} {text}: {error}") from error


def _set_seed(answerer: Answerer, argument: str) -> None:
    _set_key(answerer, f"seed {argument}")


def _set_system(answerer: Answerer, argument: str) -> None:
    conversation = _require_conversation(answerer, "/system")
    conversation.system = argument or None
    conversation.turns = []
    answerer.write("system message set; the conversation starts again" if argument else "no system message")


def _reset(answerer: Answerer, argument: str) -> None:
    _require_conversation(answerer, "/reset").turns = []
    answerer.write("the conversation starts again")


def _require_conversation(answerer: Answerer, name: str) -> Conversation:
    if answerer.conversation is None:
        raise UsageError(
            f"{name} is for chats, and here every prompt is a text of its own; start with chat=true"
        )
    return answerer.conversation


def _inspect(answerer: Answerer, argument: str) -> None:
    if answerer.last is None:
        raise UsageError("/inspect: there is no answer yet")
    answerer.inspect(answerer.answers[-1]["prompt"], answerer.last)


def _save(answerer: Answerer, argument: str) -> None:
    if not argument:
        raise UsageError("/save: add the name of a file, such as /save answers.jsonl")
    if not answerer.answers:
        raise UsageError("/save: there is no answer yet")
    path = expand_home(argument)
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        raise UsageError(f"/save {argument}: not a file; use another path")
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answerer.answers]
    try:
        atomic.write_text(path, "".join(lines))
    except OSError as error:
        raise UsageError(f"/save {argument}: {error.strerror}; use another path") from error
    answerer.write(f"{len(lines)} answers written to {path}")


def _quit(answerer: Answerer, argument: str) -> None:
    raise SessionEnd


SESSION_COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", _show_help),
    "set": Command("KEY VALUE", f"a sampling key ({', '.join(SETTABLE_KEYS)}); alone: the values", _set_key),
    "seed": Command("N", "the seed of the sampling", _set_seed),
    "system": Command("TEXT", "the system message of a chat; alone: none", _set_system),
    "reset": Command("", "forgets the turns of a chat", _reset),
    "inspect": Command(
        "", "the probability of each token of the last answer, and its alternatives", _inspect
    ),
    "save": Command("FILE", "writes the prompts and answers so far as JSON Lines", _save),
    "quit": Command("", "ends the session, as Ctrl-D does", _quit),
}
"""Name → command."""

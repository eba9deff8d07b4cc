"""The steps that all commands share: argv → Hydra → the function of the command → exit code.

    main("train", run_task, argv)      run_task(invocation) runs the command once

Nothing here imports torch; a command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeGuard, TypeVar, cast

from krill import errors
from krill.config import paths
from krill.errors import KrillError, SignalInterrupt, UsageError
from krill.launch.invocation import Invocation, SingleRun
from krill.signals import raise_on_signal, report_abort
from krill.tables import get_terminal_width, print_wrapped, wrap_text
from krill.terminal import TerminalFormatter, tolerate_encoding

if TYPE_CHECKING:
    from pydantic import BaseModel

    from krill.cli.argv import ParsedArguments
    from krill.sweep.session import RunTask, Session

ConfigT = TypeVar("ConfigT", bound="BaseModel")
_PATH_ERRNOS = {errno.ENAMETOOLONG, errno.ELOOP}
_FILESYSTEM_REMEDIES = {
    **dict.fromkeys(errors.DISK_FULL_ERRNOS, "free some space and run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    errno.EROFS: "make it writable",
    errno.ENOTDIR: "move the file that is there",
    errno.EISDIR: "move the folder that is there",
    errno.EEXIST: "move what is there",
    errno.EIO: "check the disk",
}
"""File system error for which a traceback adds nothing → what to do."""

RESUMABLE_COMMANDS = frozenset({"train", "preprocess", "tokenizer", "evaluate"})
"""Commands that resume when they are run again after a signal."""
TEXT_COMMANDS = RESUMABLE_COMMANDS - {"evaluate"}
"""Commands that prepare the text of a training."""

ArgumentHook = Callable[["ParsedArguments", Sequence[Path]], None]
log = logging.getLogger("krill")


def main(
    command: str,
    run_task: RunTask,
    argv: Sequence[str] | None = None,
    positional_key: str | None = None,
    prepare_arguments: ArgumentHook | None = None,
    has_several_positionals: bool = False,
) -> int:
    """Runs one command and returns its exit code.

    `positional_key`: the key of which an argument without "=" is the value. `prepare_arguments`: called with the
    parsed arguments and the user's configuration folders before Hydra sees them. `has_several_positionals`: whether
    it gets the arguments without "=" as they are, any number of them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    configure_logging()
    return run_and_report(
        command,
        lambda: _dispatch(
            command, run_task, arguments, positional_key, prepare_arguments, has_several_positionals
        ),
    )


def _dispatch(
    command: str,
    run_task: RunTask,
    arguments: list[str],
    positional_key: str | None,
    prepare_arguments: ArgumentHook | None,
    has_several_positionals: bool,
) -> int:
    if {"--help", "-h"} & set(arguments):
        return _print_help(command, arguments)
    if "--version" in arguments:
        from krill import __version__

        print(f"krill {__version__}")
        return errors.DONE
    with _signal_scope(command):
        return _run_with_hydra(
            command, run_task, arguments, positional_key, prepare_arguments, has_several_positionals
        )


def run_and_report(command: str, work: Callable[[], int]) -> int:
    """Returns the exit code of `work`, and prints its error on standard error.

    `command`: the name of the command without krill-; an empty string: krill itself.
    """
    try:
        _raise_if_folder_is_gone()
        code = work()
    except BrokenPipeError:  # as in krill-train --help | head
        _discard_stdout()
        return errors.FAILED
    except (KrillError, SignalInterrupt) as error:
        return print_error(command, error)
    except KeyboardInterrupt:
        print(f"{_get_program(command)}: interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    except MemoryError:
        return print_error(command, KrillError(f"out of memory; {_suggest_less_memory(command)}"))
    except Exception as error:
        if _is_filesystem_error(error):
            return print_error(command, _build_filesystem_error(error))
        traceback.print_exc()
        print(
            f"{_get_program(command)}: failed with an unexpected error; see the traceback above",
            file=sys.stderr,
        )
        return errors.FAILED
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the work is done, though nobody reads its result
        _discard_stdout()
    except OSError as error:  # a full disk
        _discard_stdout()
        return print_error(command, _build_filesystem_error(error))
    return code


def _raise_if_folder_is_gone() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError(
            "the working directory is gone: it was removed or replaced; cd to another folder"
        ) from error


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe_abort(command: str) -> str:
    return f"a library aborted. If the line above says that memory allocation failed: {_suggest_less_memory(command)}"


def _suggest_less_memory(command: str) -> str:
    if command in TEXT_COMMANDS:
        return (
            "use fewer data.workers, a smaller batch.micro_batch_size, or split the largest documents of the text; "
            "then the same command resumes"
        )
    return "use a smaller model, or a machine with more memory"


def _is_filesystem_error(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in {*_FILESYSTEM_REMEDIES, *_PATH_ERRNOS}


def _build_filesystem_error(error: OSError) -> KrillError:
    is_replaced = error.errno == errno.EISDIR and error.filename2  # the target of a rename
    path = error.filename2 if is_replaced else error.filename
    path = path or "standard output or the folder of the result"  # an open file has no name
    if error.errno in _PATH_ERRNOS:
        return UsageError(f"{path}: {error.strerror}; use another path")
    remedy = _FILESYSTEM_REMEDIES.get(error.errno or 0, "use another disk")
    return KrillError(f"{path}: {error.strerror}; {remedy}{_suggest_other_folder(error)}")


def _suggest_other_folder(error: OSError) -> str:
    """Returns what else to do about an error: output= moves the result only, not what is prepared for it."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
    if path is not None and os.path.isfile(path) and error.errno not in errors.DISK_FULL_ERRNOS:
        return ""  # a file that was to be read
    is_in_outputs = path is not None and path.absolute().is_relative_to(paths.get_outputs_root())
    return f", or set {'KRILL_OUTPUTS' if is_in_outputs else 'output='} to another folder"


def _signal_scope(command: str) -> AbstractContextManager[None]:
    return raise_on_signal() if command in RESUMABLE_COMMANDS else nullcontext()


def print_error(command: str, error: KrillError | SignalInterrupt) -> int:
    """Prints each line of the error, or of an interruption, which is not an error; returns the exit code."""
    kind = "" if isinstance(error, SignalInterrupt) else "error: "
    for line in str(error).split("\n"):
        print_wrapped(f"{_get_program(command)}: {kind}{line}", sys.stderr)
    return error.exit_code


def _get_program(command: str) -> str:
    return f"krill-{command}" if command else "krill"


def open_closed_streams() -> None:
    """Sends standard output and error to nowhere if they are closed, as for a daemon.

    Otherwise Python has no stream, and the next file that is opened gets its descriptor. Standard input stays None:
    a command that needs it says so.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
        if name != "stdin":
            setattr(sys, name, open(opened, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def configure_logging() -> None:
    """Sends krill's messages to standard error, without a prefix, in whatever encoding it has."""
    open_closed_streams()
    tolerate_encoding()
    if not log.handlers:
        handler = _LogHandler()
        handler.setFormatter(TerminalFormatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)
    # transformers imports torchao where it is installed, which warns of kernels for other versions
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _LogHandler(logging.StreamHandler[TextIO]):
    """Writes messages to standard error; on a terminal their lines are wrapped between words."""

    def format(self, record: logging.LogRecord) -> str:
        return wrap_text(super().format(record), get_terminal_width(self.stream))


def _print_help(command: str, arguments: list[str]) -> int:
    key = _get_help_key(arguments)
    if key is not None:
        from krill.cli.key_help import format_key_help

        print_wrapped(format_key_help(command, key, get_terminal_width(sys.stdout)))
        return errors.DONE
    from krill.cli import help

    folders = [*paths.find_user_config_dirs(_list_config_dirs(arguments)), paths.CONF_DIR]
    print_wrapped(help.format_help(command, folders, get_terminal_width(sys.stdout)))
    return errors.DONE


def _list_config_dirs(arguments: Sequence[str]) -> list[str]:
    """Returns the values of --config-dir; krill.cli.argv, which parses all arguments, imports Hydra."""
    split = [argument.partition("=") for argument in arguments]
    following = [*arguments[1:], ""]
    return [
        value if equals else next_argument
        for (flag, equals, value), next_argument in zip(split, following, strict=True)
        if flag in ("--config-dir", "-cd") and (equals or next_argument)
    ]


def _get_help_key(arguments: list[str]) -> str | None:
    """Returns the argument after --help, unless it is an override or a flag."""
    index = min(arguments.index(flag) for flag in ("--help", "-h") if flag in arguments)
    following = arguments[index + 1 : index + 2]
    return following[0] if following and "=" not in following[0] and following[0][:1] != "-" else None


def _run_with_hydra(
    command: str,
    run_task: RunTask,
    arguments: list[str],
    positional_key: str | None,
    prepare_arguments: ArgumentHook | None,
    has_several_positionals: bool,
) -> int:
    from krill.cli import argv, completion, compose
    from krill.sweep.session import Session

    parsed = argv.parse_arguments(arguments, positional_key, has_several_positionals)
    if parsed.is_completion and completion.parse_request(parsed.overrides)[0] == "query":
        completion.prepare_query(positional_key)
    folders = paths.find_user_config_dirs(parsed.config_dirs)
    if prepare_arguments is not None:
        prepare_arguments(parsed, folders)
    _check_multirun(parsed)
    overrides = compose.normalize_overrides(command, parsed)
    for used, hidden in paths.find_shadowed_configs([*folders, paths.CONF_DIR]):
        log.warning("conf        %s hides %s", used, hidden)

    if not parsed.is_print_only:
        from krill.sweep.plugins import register_plugins

        register_plugins()
    session = Session(run_task)
    try:
        compose.run_hydra(command, session, [*parsed.flags, *overrides], folders)
    except Exception as error:
        if parsed.is_completion:
            return errors.DONE  # an incomplete argument is not an error
        if session.sweep is None and compose.is_usage_error(error):
            from krill.cli.diagnosis import diagnose_overrides

            messages = diagnose_overrides(command, overrides, folders, error, parsed.is_multirun)
            raise UsageError("\n".join(messages)) from error
        session.error = error
    except SystemExit as exit_request:
        if not parsed.is_print_only:
            raise
        # Hydra has printed why, as for an unknown -p.
        return errors.USAGE if exit_request.code else errors.DONE
    return _finish_session(command, session)


def _check_multirun(parsed: ParsedArguments) -> None:
    """Raises UsageError for -m with a flag that only prints, and for a launcher of points without -m."""
    if parsed.is_multirun and parsed.is_print_only:
        raise UsageError(
            "-m runs every point, --cfg and --info print one configuration: leave one of them out"
        )
    launcher = parsed.get_value("hydra/launcher")
    is_single_run = not (parsed.is_multirun or parsed.is_print_only)
    if is_single_run and launcher not in (None, "basic", "submitit_slurm"):
        raise UsageError(f"hydra/launcher={launcher} starts the points of a sweep: add -m")


def _finish_session(command: str, session: Session) -> int:
    """Ends a sweep with its table, and raises the error of a single run. Returns the exit code."""
    error, sweep = session.error, session.sweep
    if sweep is None:
        if error is not None:
            raise error
        return errors.DONE
    from krill.sweep.sweeper import finish_sweep

    if error is not None and _is_filesystem_error(error):  # of this process; a point records its own
        code = print_error(command, _build_filesystem_error(error))
        if not sweep.dry_run and not sweep.folder.is_dir():
            return code  # no point has started
    return finish_sweep(sweep, has_error=error is not None)


def run_command(
    invocation: Invocation, schema: type[ConfigT], work: Callable[[ConfigT, Invocation], Any]
) -> Any:
    """Validates the configuration of `invocation` and returns `work`(config, invocation), or submits it to SLURM."""
    configure_logging()
    with _signal_scope(invocation.command):  # again: the process of a launcher does not come through main
        config = invocation.validate(schema)
        if isinstance(invocation, SingleRun) and invocation.is_for_slurm:
            from krill.launch import submit

            return submit.submit_run(cast("Any", config), invocation)
        abort_message = f"krill-{invocation.command}: error: {_describe_abort(invocation.command)}"
        with report_abort(abort_message, errors.FAILED):
            return work(config, invocation)

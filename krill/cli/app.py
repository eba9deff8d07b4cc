"""What all commands share: argv → Hydra → the command's function → exit code.

    main("train", point, argv)      point(composed) is what Hydra calls for each point of a sweep, or once

Nothing here imports torch; a command imports its stage when it runs.
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
from typing import TYPE_CHECKING, Any, TypeVar, cast

from krill import errors
from krill.cli.call import Call
from krill.config import location
from krill.errors import KrillError, Stopped, UsageError
from krill.signals import stopping

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")
_PLACE_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip
"""Errors of the file system that a traceback does not make clearer: full, read-only, forbidden, in the way."""

GO_ON = frozenset({"train", "preprocess", "tokenizer"})
"""Commands that go on, given again, where a signal ended them."""

_failures: list[Exception] = []
"""What ended the point of a single run: kept from Hydra, which would add a line of its own."""

Point = Callable[[Any], Any]
Before = Callable[[Any, Sequence[Path]], None]
log = logging.getLogger("krill")


def main(
    command: str,
    point: Point,
    argv: Sequence[str] | None = None,
    bare: str | None = None,
    before: Before | None = None,
) -> int:
    """Run one command and return its exit code.

    `bare`: the key that a word without "=" stands for. `before`: called with the sorted command line (and the
    person's configuration folders) before Hydra sees it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    listen()
    return told(command, lambda: _main(command, point, words, bare, before))


def _main(command: str, point: Point, words: list[str], bare: str | None, before: Before | None) -> int:
    if {"--help", "-h"} & set(words):
        return _help(command, words)
    if "--version" in words:
        from krill import __version__

        print(f"krill {__version__}")
        return errors.DONE
    with _stopping(command):
        return _through_hydra(command, point, words, bare, before)


def told(command: str, work: Callable[[], int]) -> int:
    """The exit code of `work`; what it raises is said on standard error."""
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in krill-train --help | head: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.FAILED
    except (KrillError, Stopped) as error:
        return fail(command, error)
    except KeyboardInterrupt:
        print(f"krill-{command}: interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _PLACE_TROUBLE:
            place = f"{error.filename}: " if error.filename else ""
            return fail(
                command, KrillError(f"{place}{error.strerror}; mend that, or choose another place: output=")
            )
        traceback.print_exc()
        print(f"krill-{command}: failed; the traceback above says where", file=sys.stderr)
        return errors.FAILED


def _stopping(command: str | None) -> AbstractContextManager[None]:
    return stopping() if command in GO_ON else nullcontext()


def fail(command: str, error: KrillError | Stopped) -> int:
    """Print each line of the error, return its exit code."""
    for line in str(error).splitlines():
        print(f"krill-{command}: error: {line}", file=sys.stderr)
    return error.exit_code


def listen() -> None:
    """krill's messages go to standard error, as they are."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)


def _help(command: str, words: list[str]) -> int:
    from krill.cli import help

    given = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    print(help.text(command, [*location.user_dirs(given), location.CONF_DIR]), flush=True)
    return errors.DONE


def _through_hydra(
    command: str, point: Point, words: list[str], bare: str | None, before: Before | None
) -> int:
    from krill.cli import argv, compose, sweep

    typed = argv.sort(words, bare)
    folders = location.user_dirs(typed.config_dirs)
    if typed.multirun and typed.shown:
        raise UsageError(
            "-m runs every point, --cfg and --info print one configuration: leave one of them out"
        )
    launcher = typed.value("hydra/launcher")
    if launcher not in (None, "basic", "submitit_slurm") and not typed.multirun and not typed.shown:
        raise UsageError(f"hydra/launcher={launcher} starts the points of a sweep: add -m")
    if before is not None:
        before(typed, folders)
    overrides = compose.rewritten(command, typed)
    for used, hidden in location.shadowed([*folders, location.CONF_DIR]):
        log.warning("conf: %s is used; it hides %s", used, hidden)

    error: Exception | None = None
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        compose.run(command, point, [*typed.flags, *overrides], folders)
    except Exception as raised:
        error = raised
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    if typed.completes:
        return errors.DONE  # a word that is not finished yet is no error
    if sweep.started():
        return sweep.finish(failed=error is not None)
    if error is not None and compose.is_usage(error):
        raise UsageError("\n".join(compose.problems(command, overrides, folders, error))) from error
    if error is None and _failures:
        error = _failures.pop()
    if error is not None:
        raise error
    return errors.DONE


def answer(given: Any, schema: type[Config], work: Callable[[Config, Call], Any]) -> Any:
    """Validate what Hydra composed, or a Call holds, and do `work`(config, call); say a failure where it belongs."""
    from krill.sources.digests import none_kept

    listen()
    call = given if isinstance(given, Call) else Call.of_hydra(given)
    try:
        # Again: a launcher's job does not come through main.
        with _stopping(call.command), none_kept() if call.composed.dry_run else nullcontext():
            config = call.validated(schema)
            if call.submits:
                from krill.cli import submit

                return submit.one(cast("Any", config), call)
            return work(config, call)
    except Exception as error:
        if call.job is not None:
            raise
        if call.sweep is None:
            _failures.append(error)
            return None
        log.error("failed: %s: %s", " ".join(call.overrides), error)
        raise
    except Stopped as stop:
        if call.sweep is None or call.job is not None:
            raise
        log.error("%s: %s", " ".join(call.overrides), stop)
        raise SystemExit(stop.exit_code) from stop  # what a launcher's job ends with, too

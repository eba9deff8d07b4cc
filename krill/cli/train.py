"""krill-train: make the tokenizer and the tokens where they are missing, then train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.cli.call import Call
from krill.cli.differences import from_experiment, since_last_start
from krill.config.location import outputs_root

if TYPE_CHECKING:
    from krill.config.schema import TrainConfig

log = logging.getLogger("krill")


def main() -> int:
    """Entry point of krill-train."""
    return app.main("train", point)


def point(composed: Any) -> float | None:
    """One run: what Hydra calls, once or for each point of a sweep. Returns the validation loss."""
    from krill.config.schema import TrainConfig

    return app.answer(composed, TrainConfig, train)


def train(config: TrainConfig, call: Call) -> float | None:
    """Prepare, then train in a folder of its own; the same run that was stopped goes on in its folder."""
    if config.dry_run:
        from krill.training.dry_run import plan

        print("\n".join([*plan(config, outputs_root()), *from_experiment(config, call.choices)]))
        return None
    from krill.launch.task import announce
    from krill.sources.registry import check

    check(config.data)  # what is wrong there is told before torch is loaded
    announce()

    from krill.training import ranks
    from krill.training.beforehand import check_beforehand
    from krill.training.plan import device_name

    check_beforehand(config)
    with ranks.joined(device_name(config.device)):
        if ranks.is_first():
            return _lead(config, call)
        if places := ranks.heard():
            _run(config, *places)
        return None


def _lead(config: TrainConfig, call: Call) -> float | None:
    """What one process does for all ranks: claim the folder, prepare, record; then train, with the others."""
    from krill.cli import places
    from krill.runs.claim import claim
    from krill.runs.record import Record, shown
    from krill.runs.remote import catch_up, look
    from krill.training import ranks

    with ranks.telling() as tell:
        identity = places.identity("train", config)
        root = outputs_root()
        # A new run gets no folder before its input has proved good; a sweep's point records that it did not.
        given = call.sweep or (call.job and call.job.folder)
        begins = not given and (config.output is not None or config.resume in ("auto", "remote", False))
        remote = look(config, identity)
        prepared = prepare(config, root) if begins else None
        claimed = claim(
            identity, root / "runs" / config.name, call.place(config.output, identity), call.resume(config.resume),
            config.resume_changed and not given,
        )  # fmt: skip
        record = Record(claimed.folder)
        if claimed.state == "finished":
            log.info("finished already, nothing to do: %s", shown(claimed.folder))
        else:
            if claimed.state == "continued":
                log.info("resume: going on in %s", shown(claimed.folder))
                for line in since_last_start(config, claimed.folder):
                    log.info(line)
            with claimed, record.running(config, identity, call.overrides):
                call.keep(claimed.folder)
                tokenizer, store = prepared or prepare(config, root)
                for line in from_experiment(config, call.choices):
                    log.info(line)
                catch_up(remote, claimed.folder)
                _run(config, *tell((claimed.folder, store, tokenizer)))
        call.end(claimed.folder)
    return record.status.get("metrics", {}).get("eval_loss")


def _run(config: TrainConfig, folder: Path, store: Path, tokenizer: Path) -> None:
    """Train here, or on the ranks that are to be started."""
    from krill.training import ranks
    from krill.training.plan import ranks_of

    if ranks.count() == 1 and ranks_of(config) > 1:
        from krill.launch.local import run_on_ranks

        run_on_ranks(config, folder, store, tokenizer)
    else:
        from krill.launch.reports import naming_the_first
        from krill.training.run import run

        with naming_the_first(folder, ranks.rank(), ranks.count()):
            run(config, folder, store=store, tokenizer=tokenizer)


def prepare(config: TrainConfig, root: Path) -> tuple[Path, Path]:
    """The folders of the tokenizer and of the tokens: each is made once and reused by its content."""
    from krill.data.obtain import obtain_store, obtain_tokenizer

    tokenizer = obtain_tokenizer(config, root)
    return tokenizer.folder, obtain_store(config, tokenizer, root)[0]

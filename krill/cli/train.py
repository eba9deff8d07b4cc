"""krill-train: make the tokenizer and the tokens where they are missing, then train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krill.cli import app
from krill.config.location import CONF_DIR, options, outputs_root

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


def train(config: TrainConfig, call: app.Call) -> float | None:
    """Prepare, then train in a folder of its own; the same run that was stopped goes on in its folder."""
    if config.dry_run:
        from krill.training.dry_run import plan

        print("\n".join([*plan(config, outputs_root()), *_differences(config, call)]))
        return None
    from krill.sources.registry import check

    check(config.data)  # what is wrong there is told before torch is loaded

    from krill.cli import places
    from krill.runs.record import Record, claim, shown
    from krill.training.beforehand import check_beforehand

    check_beforehand(config)
    identity = places.identity("train", config)
    root = outputs_root()
    # A new run gets no folder before its input has proved good; a sweep's point records that it did not.
    begins = not call.sweep and (config.output is not None or config.resume in ("auto", False))
    prepared = prepare(config, root) if begins else None
    claimed = claim(identity, root / "runs" / config.name, call.place(config.output, identity), config.resume)
    record = Record(claimed.folder)
    if claimed.state == "finished":
        log.info("finished already, nothing to do: %s", shown(claimed.folder))
    else:
        if claimed.state == "continued":
            log.info("resume: going on in %s", shown(claimed.folder))
        with claimed, record.running(config, identity, call.overrides):
            from krill.training.run import run

            call.keep(claimed.folder)
            tokenizer, store = prepared or prepare(config, root)
            for line in _differences(config, call):
                log.info(line)
            run(config, claimed.folder, store=store, tokenizer=tokenizer)
    call.end(claimed.folder)
    return record.status.get("metrics", {}).get("eval_loss")


def prepare(config: TrainConfig, root: Path) -> tuple[Path, Path]:
    """The folders of the tokenizer and of the tokens: each is made once and reused by its content."""
    from krill.data.obtain import obtain_store, obtain_tokenizer

    tokenizer = obtain_tokenizer(config, root)
    return tokenizer.folder, obtain_store(config, tokenizer, root)[0]


def _differences(config: TrainConfig, call: app.Call) -> list[str]:
    """What differs from the experiment that the model is named after, unless that is what runs."""
    name = config.model.name
    if name not in options("experiment", [CONF_DIR]) or call.choices.get("experiment") == name:
        return []
    from krill.cli.compose import composed
    from krill.config.schema import TrainConfig
    from krill.config.validation import validated

    theirs = flat(validated(TrainConfig, composed("train", [f"experiment={name}"])))
    ours = flat(config)
    keys = ("name", "data.name", "tokenizer.name", "tokenizer.vocab_size", "optimizer.name", "lr",
            "optimizer.weight_decay", "scheduler.min_ratio", "sequence_len", "packing", "steps", "epochs",
            "batch.micro_batch_size")  # fmt: skip
    parts = [f"{key}={ours.get(key)} ({theirs.get(key)})" for key in keys if ours.get(key) != theirs.get(key)]
    return [f"differs     from experiment={name}: {', '.join(parts)}"] if parts else []


def flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted key → value, of every key below one section."""
    found: dict[str, Any] = {}
    for key, value in config.model_dump().items():
        found |= (
            {f"{key}.{name}": item for name, item in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return found

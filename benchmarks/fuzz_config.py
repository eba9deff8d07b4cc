"""Does every configuration, however wrong, end with exit code 0 or 2 and without a traceback?

    python benchmarks/fuzz_config.py [--cases 500] [--seed 0]

Each case is a command line of random overrides (keys, values, groups, flags), often with a damaged YAML file of the
user, in this process with dry_run=true, which also has to write nothing. Prints the cases that fail, and writes
results/fuzz_config.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from krill.cli import app, infer, preprocess, tokenizer, train
from krill.cli.compose import compose_config
from krill.cli.model_arguments import resolve_model_arguments
from krill.config.key_aliases import FOREIGN_KEYS, HYDRA_KEYS
from krill.config.paths import CONF_DIR, list_config_groups, list_config_options
from krill.config.validation import iterate_dotted_keys
from krill.launch.invocation import Invocation

RESULT = Path(__file__).parent / "results" / "fuzz_config.json"
SECONDS_PER_CASE = 120
SMALL_RUN = ("model=llama_pico", "sequence_len=64", "device=cpu", "dry_run=true")
OFFLINE_OPTIONS = {"tiny_ko", "tiny_korean_100k", "llama_pico_1k", "qwen_micro_1k", "qwen_pico_1k"}
"""Options that read the Hugging Face Hub."""

VALUES = (
    "0", "-1", "1", "2", "7", "64", "0.5", "1e-3", "1e400", "-inf", "nan", "2147483648", "4294967296",
    "9007199254740993", "1000000000000000000000000000000", "1e-400", "1_000", "0x10", "null", "true", "''", "x",
    "한국어", "a b", "a/b/c", "../x", "~", "???", "[", "}", "'", "\"", "\\", "a=b", "a: b", "$", "${", "${name}",
    "${nope}", "${seed", "${krill.nope:1}", "[]", "{}", "[1,2]", "[x,[y]]", "{a: 1}", "[{name: x}]",
    "{name: [1]}", "a,b", "1,2", "range(0,2)", "range(0.1,0.3,0.1)", "range(0,4,0)", "choice(1,2)", "glob(*)",
    "interval(0,1)", "tag(t,1)", "int(x)", "str(3)", "shuffle(1,2)", "extend_list(1)", "\t", "\n", "é�",
    "a.py:b", "lion.py:build", "1" * 300,
)  # fmt: skip
"""Values of overrides and of keys in YAML files, of every kind."""


def list_keys(command: str) -> list[str]:
    """Returns the dotted keys of a command and names that resemble them."""
    composed = OmegaConf.to_container(compose_config(command, []))
    keys = [key for key in iterate_dotted_keys(composed) if key not in ("dry_run", "model.num_hidden_layers")]
    return [*keys, *FOREIGN_KEYS, *HYDRA_KEYS, "hydra/launcher", "hydra/sweeper", "hydra.job.name", "hydra"]


def draw_override(rng: random.Random, keys: Sequence[str]) -> str:
    """Draws an override: a valid option, or a value of a key or group, which may have a mistake."""
    if rng.random() < 0.4:
        group = rng.choice([name for name in list_config_groups() if name != "experiment"])
        options = sorted(list_config_options(group, [CONF_DIR]).keys() - OFFLINE_OPTIONS)
        return f"{group}={rng.choice(options)}"
    if rng.random() < 0.3:
        group = rng.choice(list_config_groups())
        options = [*list_config_options(group, [CONF_DIR]), "fuzz", *rng.sample(VALUES, 3)]
        key, value = group, rng.choice([name for name in options if name not in OFFLINE_OPTIONS])
    else:
        key, value = rng.choice(keys), rng.choice(VALUES)
    if rng.random() < 0.1:
        position = rng.randrange(len(key))
        key = key[:position] + rng.choice(("", "x", ".", "_", key[position] * 2)) + key[position + 1 :]
    if rng.random() < 0.05:
        return rng.choice((f"--{key}", f"~{key}", key, f"-{key}={value}", f"{key}:{value}"))
    return rng.choice(("", "", "", "", "+", "++", "~")) + f"{key}={value}"


def list_replacements(rng: random.Random, line: str) -> list[list[str]]:
    """Returns what a line of a YAML file may become."""
    name, key, value = line.partition(":")[0], rng.choice(VALUES), rng.choice(VALUES)
    removed = [line.replace(part, "") for part in ("override ", "/", ":", "- ", "_global_")]
    added = [f"  {line}", f"\t{line}", f"[{line}", f"{line} &x", f"{line} *y", f"{line} !z", line.strip()]
    values = [f"{name}: {value}", f"{key}: {value}"]
    pairs = [
        [line, "model: llama_pico"],
        [line, f"- {value}"],
        ["---", line],
        [line, "defaults: x"],
        [line, line],
    ]
    return [*([changed] for changed in (*removed, *added, *values)), *pairs, []]


def damage(rng: random.Random, text: str) -> bytes:
    """Returns the text of a YAML file with one to three mistakes."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        index = rng.randrange(len(lines)) if lines else 0
        line = lines[index] if lines else ""
        replacement = rng.choice(list_replacements(rng, line))
        lines[index : index + 1] = replacement
    content = "\n".join(lines).encode("utf-8", "replace")
    if rng.random() < 0.1:
        position = rng.randrange(len(content) + 1)
        content = (
            content[:position]
            + rng.choice((b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r", b""))
            + content[position:]
        )
    return content if rng.random() > 0.03 else b""


def write_user_file(rng: random.Random, conf: Path) -> str:
    """Writes a damaged copy of one of krill's files as the option fuzz of its group; returns the group."""
    files = [file for file in sorted(CONF_DIR.glob("*/*.yaml")) if not OFFLINE_OPTIONS & {file.stem}]
    source = rng.choice([file for file in files if file.parent.name in list_config_groups()])
    source = rng.choice((source, CONF_DIR / "experiment" / "tiny_ko.yaml"))
    text = (
        source.read_text(encoding="utf-8")
        .replace("tiny_ko", "llama_pico")
        .replace("data: llama_pico", "data: python_docs")
    )
    file = conf / source.parent.name / "fuzz.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(damage(rng, text))
    return source.parent.name


def draw_command_line(rng: random.Random, keys: dict[str, list[str]], folder: Path) -> tuple[str, list[str]]:
    """Draws a command and its arguments; writes the user's file that they may name."""
    command = rng.choice(("train", "train", "train", *keys))
    arguments = list(SMALL_RUN) if command != "infer" else ["model=nothere", "prompt=x", "dry_run=true"]
    if rng.random() < 0.4:
        group = write_user_file(rng, folder / "conf")
        arguments.append(f"{group}=fuzz")
    arguments += [draw_override(rng, keys[command]) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    if rng.random() < 0.2:
        arguments.insert(
            rng.randrange(len(arguments) + 1), rng.choice(("-m", "--cfg", "-p", "--resolve", "--info", "--"))
        )
    return command, arguments


@contextlib.contextmanager
def isolate(folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Runs the context in `folder`, with the standard streams captured and a limit of time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end after {SECONDS_PER_CASE} s")

    before, argv, log = Path.cwd(), sys.argv, logging.getLogger("krill")
    log.handlers.clear()
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_CASE)
    os.chdir(folder)
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield output, errors
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        os.chdir(before)
        sys.argv = argv
        log.handlers.clear()


def run_case(rng: random.Random, keys: dict[str, list[str]]) -> tuple[int, str, str]:
    """Runs one case; returns its exit code, what is wrong or an empty string, and the case as text."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command, arguments = draw_command_line(rng, keys, folder)
        before = sorted(folder.rglob("*"))
        files = {
            str(file.relative_to(folder)): file.read_bytes().decode("utf-8", "replace")
            for file in before
            if file.is_file()
        }
        case = json.dumps([command, arguments, files], ensure_ascii=False)
        with isolate(folder) as (_, errors):
            try:
                code = _COMMANDS[command](arguments)
            except BaseException as error:
                code, wrong = -1, f"{type(error).__name__}: {error}"
            else:
                wrong = "" if code in (0, 2) else f"exit code {code}: {errors.getvalue()[-500:]}"
        if "Traceback" in errors.getvalue():
            wrong = errors.getvalue()[-1500:]
        if not wrong and sorted(folder.rglob("*")) != before:
            wrong = "the dry run wrote something"
        return code, wrong, case


def validate_inspect(invocation: Invocation) -> None:
    """Validates the configuration of krill-inspect, whose dry run there is not."""
    from krill.config.schema import InspectConfig

    invocation.validate(InspectConfig)


_COMMANDS = {
    "train": lambda arguments: app.main("train", train.run_task, arguments),
    "preprocess": lambda arguments: app.main("preprocess", preprocess.run_task, arguments),
    "tokenizer": lambda arguments: app.main("tokenizer", tokenizer.run_task, arguments),
    "inspect": lambda arguments: app.main("inspect", validate_inspect, arguments),
    "infer": lambda arguments: app.main("infer", infer.run_task, arguments, "model", resolve_model_arguments),
}


def fuzz(cases: int, seed: int) -> tuple[Counter[int], list[dict[str, str]]]:
    """Runs `cases` cases; returns exit code → number of cases, and the failures."""
    keys = {command: list_keys(command) for command in _COMMANDS}
    codes: Counter[int] = Counter()
    failures = []
    for index in range(cases):
        code, wrong, case = run_case(random.Random(f"{seed} {index}"), keys)
        codes[code] += 1
        if wrong:
            failures.append({"index": str(index), "case": case, "wrong": wrong})
            print(f"case {index}: {case}\n{wrong}\n", flush=True)
    return codes, failures


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import krill.plan.dry_run  # noqa: F401  (what a dry run imports is not part of the first case)

    start = time.perf_counter()
    codes, failures = fuzz(arguments.cases, arguments.seed)
    result = {
        "cases": arguments.cases,
        "seed": arguments.seed,
        "exit codes": {str(code): count for code, count in sorted(codes.items())},
        "failures": failures,
        "date": str(date.today()),
        "python": platform.python_version(),
        "hydra": version("hydra-core"),
        "seconds": round(time.perf_counter() - start),
    }
    RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{arguments.cases} cases: exit codes {dict(sorted(codes.items()))}, {len(failures)} failures")


if __name__ == "__main__":
    main()

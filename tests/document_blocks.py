"""The code blocks of the documents, and the shims that stand in for the krill commands in them.

A bash block is run unless an HTML comment right before it says why not (<!-- not run: reason -->), or that it runs on
a cluster. A shim adds small settings where an example leaves a key at its default and shortens the run, so that a
block takes seconds. With KRILL_PRELOADED set, commands are forked from the server at that address.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n(?:\s*\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
NOT_RUN = re.compile(r"^<!-- (not run: .+|runs on a cluster) -->$")
NAMED = re.compile(r"`(?P<name>[\w./]+\.(?:py|yaml|jsonl))`:$")

SHIM = """#!{python}
import os, re, sys
SMALL = {{
    "steps": "4", "sequence_len": "64", "batch.micro_batch_size": "2", "eval_every": "2", "eval_tokens": "2000",
    "hardware.threads": "1",
    "model.hidden_size": "24", "model.intermediate_size": "32", "model.num_hidden_layers": "1",
}}
CUT = {{"steps": "steps=4", "epochs": "epochs=0.01", "sweep.trials": "sweep.trials=2"}}
command, words = {command!r}, sys.argv[1:]
program = [{real!r}]
if command in ("krill", "kr"):
    program.append(words.pop(0))
    command = "krill-" + program[-1].replace("inference", "infer")
keys = {{word.lstrip("+").partition("=")[0]: word for word in words if "=" in word}}
small = {{}}
if command == "krill-infer":
    small = {{"max_new_tokens": "8"}}
elif command == "krill-evaluate":
    small = {{"limit": "4", "evaluation.text_tokens": "2000"}}
elif command not in ("krill-runs", "krill-export", "krill-plan", "krill-serve") and not (
    {{"--help", "--cfg", "-sc"}} & {{*words, *program}}
):
    model = keys.get("model", "")
    is_custom = model and os.path.exists("conf/" + model.replace("=", "/") + ".yaml")
    is_custom = is_custom or model in ("model=auto", "model=pretrained")
    small = {{key: value for key, value in SMALL.items() if not (is_custom and key.startswith("model."))}}
    words = [re.sub(r"^(steps|epochs|sweep.trials)=.*", lambda key: CUT[key[1]], word)
             for word in words]
    if "continue" in keys:
        small, words = {{}}, [re.sub(r"^steps=4$", "steps=8", word) for word in words]
    elif "experiment" in keys or "from" in keys:
        small = {{"steps": "4"}}
    if {{"epochs", "steps"}} & set(keys):
        small.pop("steps", None)
    if "data" in keys and not {{"tokenizer.vocab_size", "tokenizer.path"}} & set(keys):
        small["tokenizer.vocab_size"] = "600"
    has_path = any("=" not in word and not word.startswith("-") for word in words)
    if not has_path and not {{"data", "experiment", "from", "continue"}} & set(keys):
        small["data.validation_fraction"] = "0.003"
    if keys.get("data") == "data=files":
        small["data.validation_fraction"] = "0.1"
    if {{"model.hidden_size"}} & set(small) and {{"batch.tokens"}} & set(keys):
        small.pop("batch.micro_batch_size", None)
words += [key + "=" + value for key, value in small.items() if key not in keys]
if server := os.environ.get("KRILL_PRELOADED"):
    from krill.launch.preload import relay_command
    sys.exit(relay_command(server, [*program, *words]))
os.execv(program[0], [*program, *words])
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line before it."""

    language: str
    content: str
    before: str
    line: int


def list_blocks(document: Path) -> list[Block]:
    """Returns the fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["content"], match["before"].strip(), text.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(text)
    ]  # fmt: skip


def is_run(block: Block) -> bool:
    """Whether the block is run: bash without a stated reason not to, or Python that is not a file of its own."""
    if NOT_RUN.match(block.before):
        return False
    return block.language == "bash" or (block.language == "python" and not NAMED.search(block.before))


def write_shims(folder: Path, commands: list[str]) -> None:
    """Writes a shim for each console script into `folder`."""
    folder.mkdir()
    for name in commands:
        real = str(Path(sys.executable).with_name(name))
        (folder / name).write_text(
            SHIM.format(python=sys.executable, command=name, real=real), encoding="utf-8"
        )
        (folder / name).chmod(0o755)

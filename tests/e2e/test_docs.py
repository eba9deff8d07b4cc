"""What the documents say works: each bash block runs, each named file in them is written and used, each link leads
somewhere, the reference is what the schema says.

A block runs unless an HTML comment says why not, right before it: <!-- not run: reason -->, or that it does so on a
cluster (tests/slurm/test_slurm_docs.py). The blocks of a document
run one after the other in one folder. In place of the krill commands stands a shim that adds small settings where the
example leaves a key at its default, and cuts steps, so that a block takes seconds.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow
import pyarrow.parquet
import pytest

from krill.cli.main import COMMANDS

HOUSE = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = [*(HOUSE / name for name in PAGES), *sorted((HOUSE / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n(?:\s*\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE
)
NOT_RUN = re.compile(r"^<!-- (not run: .+|runs on a cluster) -->$")
NAMED = re.compile(r"`(?P<name>[\w./]+\.(?:py|yaml))`:$")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SECONDS = 300

SHIM = """#!{python}
import os, re, sys
SMALL = {{
    "steps": "4", "sequence_len": "64", "batch.micro_batch_size": "2", "eval_every": "2", "hardware.threads": "1",
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
elif command != "krill-runs" and not {{"--help", "--cfg", "-sc"}} & set(words):
    model = keys.get("model", "")
    mine = model and os.path.exists("conf/" + model.replace("=", "/") + ".yaml")
    mine = mine or model in ("model=auto", "model=pretrained")
    small = {{key: value for key, value in SMALL.items() if not (mine and key.startswith("model."))}}
    words = [re.sub(r"^(steps|epochs|sweep.trials)=.*", lambda key: CUT[key[1]], word)
             for word in words]
    if "experiment" in keys or "from" in keys:
        small = {{"steps": "4"}}
    if {{"epochs", "steps"}} & set(keys):
        del small["steps"]
    if "data" in keys and not {{"tokenizer.vocab_size", "tokenizer.path"}} & set(keys):
        small["tokenizer.vocab_size"] = "600"
    if keys.get("data") == "data=files":
        small["data.validation_fraction"] = "0.1"
    if {{"model.hidden_size"}} & set(small) and {{"batch.tokens"}} & set(keys):
        del small["batch.micro_batch_size"]
words += [key + "=" + value for key, value in small.items() if key not in keys]
os.execv(program[0], [*program, *words])
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line before it."""

    language: str
    content: str
    before: str
    line: int


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["content"], match["before"].strip(), text.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(text)
    ]  # fmt: skip


def runs(block: Block) -> bool:
    """Whether the block is run: bash without a reason against it, Python that is no file of its own."""
    if NOT_RUN.match(block.before):
        return False
    return block.language == "bash" or (block.language == "python" and not NAMED.search(block.before))


WITH_BLOCKS = [document for document in DOCUMENTS if any(map(runs, blocks(document)))]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the files that the documents speak of, and the shims in bin/."""
    here = tmp_path / "here"
    (here / "말뭉치").mkdir(parents=True)
    (here / "my text").mkdir()
    texts = [topics[name] for name in sorted(topics)[:60]]
    for name in ("a.jsonl", "말뭉치/가.jsonl", "my text/b c.jsonl"):
        lines = (json.dumps({"text": f"{name}: 옛날 옛적에. {text}"}, ensure_ascii=False) for text in texts)
        (here / name).write_text("\n".join(lines), encoding="utf-8")
    table = pyarrow.table({"text": [f"parquet {text}" for text in texts]})
    pyarrow.parquet.write_table(table, here / "b.parquet")
    with open(here / "letters.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("date", "body"), *((str(day), text) for day, text in enumerate(texts))])
    (tmp_path / "bin").mkdir()
    for name in ("krill", "kr", *(f"krill-{command}" for command in COMMANDS)):
        real = Path(sys.executable).with_name(name)
        shim = tmp_path / "bin" / name
        shim.write_text(SHIM.format(python=sys.executable, command=name, real=str(real)), encoding="utf-8")
        shim.chmod(0o755)
    return here


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: path.name)
def test_what_a_document_shows_works(document: Path, place: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KRILL_")}
    path = f"{place.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = clean | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for block in blocks(document):
        if named := NAMED.search(block.before):
            file = place / named["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.content, encoding="utf-8")
        elif runs(block):
            words = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            done = subprocess.run(
                [*words, block.content], cwd=place, env=environment, text=True, capture_output=True,
                stdin=subprocess.DEVNULL, timeout=SECONDS,
            )  # fmt: skip
            where = f"{document.name}:{block.line}\n{block.content}"
            assert done.returncode == 0, f"{where}exit {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in LINK.finditer(text):
        file, _, heading = match["target"].partition("#")
        if file.startswith(("https:", "http:")):
            continue
        target = (document.parent / file) if file else document
        assert target.exists(), f"{document.name}: {match[0]} leads nowhere"
        if heading:
            assert heading in anchors(target), f"{document.name}: {match[0]}: no such heading"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_block_has_a_language() -> None:
    for document in DOCUMENTS:
        fences = re.findall(r"^```(\w*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), f"{document.name}: a fenced block without a language"
        assert not any(fences[1::2]), f"{document.name}: fences do not pair"
        assert len(blocks(document)) == len(fences) // 2, (
            f"{document.name}: a block that the test does not see"
        )


def test_the_two_commands_of_the_readme() -> None:
    commands = [block.content.strip() for block in blocks(HOUSE / "README.md") if block.language == "bash"][
        :2
    ]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e . && .venv/bin/krill-train",
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' && .venv/bin/pytest -n 2",
    ]


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", HOUSE / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made, kept = module.text(), module.PAGE.read_text(encoding="utf-8")
    assert made == kept, "docs/reference.md is out of date; run: python docs/make_reference.py"

"""What the documents say works: each bash block runs, each named file in them is written and used, each link leads
somewhere, and the reference is what the schema says.

The blocks of a document run one after the other in one folder (document_blocks).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow
import pyarrow.parquet
import pytest
from console import get_clean_environment, get_preloaded_environment
from document_blocks import NAMED, is_run, list_blocks, write_shims

from krill.cli.main import COMMANDS

HOUSE = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = [*(HOUSE / name for name in PAGES), *sorted((HOUSE / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SECONDS = 300

WITH_BLOCKS = [document for document in DOCUMENTS if any(map(is_run, list_blocks(document)))]


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
    (here / "text").mkdir()
    for name, start in (
        ("ko", "이 영화는 정말 재미있고 배우들의 연기도 훌륭합니다."),
        ("en", "This is the page:"),
    ):
        table = pyarrow.table({"text": [f"{start} {topics[topic]}" for topic in topics]})
        pyarrow.parquet.write_table(table, here / "text" / f"{name}.parquet")
    with open(here / "letters.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("date", "body"), *((str(day), text) for day, text in enumerate(texts))])
    (here / "old.csv").write_text("body\n옛날 옛적에\n", encoding="cp949")
    write_all_shims(tmp_path / "bin")
    return here


def write_all_shims(folder: Path) -> None:
    write_shims(folder, ["krill", "kr", *(f"krill-{command}" for command in COMMANDS)])


def run_block(words: list[str], shims: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in `folder` in which krill's commands are the shims."""
    path = f"{shims}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        words, cwd=folder, env=get_clean_environment() | {"PATH": path} | get_preloaded_environment(), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def prepared_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with the tokenizer and the tokens of the built-in text, as the shims prepare them."""
    folder = tmp_path_factory.mktemp("prepared")
    write_all_shims(folder / "bin")
    done = run_block(["krill-preprocess"], folder / "bin", folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: path.name)
def test_what_a_document_shows_works(document: Path, place: Path, prepared_outputs: Path) -> None:
    if document.name != "README.md":  # whose first command begins with nothing
        shutil.copytree(prepared_outputs, place / "outputs")
    for block in list_blocks(document):
        if named := NAMED.search(block.before):
            file = place / named["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.content, encoding="utf-8")
        elif is_run(block):
            words = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            done = run_block([*words, block.content], place.parent / "bin", place)
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
        assert len(list_blocks(document)) == len(fences) // 2, (
            f"{document.name}: a block that the test does not see"
        )


def test_the_two_commands_of_the_readme() -> None:
    commands = [
        block.content.strip() for block in list_blocks(HOUSE / "README.md") if block.language == "bash"
    ][:2]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e . && .venv/bin/krill-train",
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' && .venv/bin/pytest -n 2",
    ]


@pytest.mark.parametrize("page", ["reference", "minimal_pairs"])
def test_generated_pages_are_up_to_date(page: str) -> None:
    spec = importlib.util.spec_from_file_location(f"make_{page}", HOUSE / "docs" / f"make_{page}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generated, committed = module.build_page(), module.PAGE.read_text(encoding="utf-8")
    assert generated == committed, f"{module.PAGE.name} is out of date; run: python docs/make_{page}.py"

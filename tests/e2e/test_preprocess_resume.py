"""Tests that interrupted, concurrent and distributed preparations give the same store, byte for byte."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from console import SMALL_RUN, Krill, get_clean_environment, get_server, run_command
from stores import make_byte_tokenizer, read_store_content

pytestmark = pytest.mark.slow

MAX_CHARS = 3000
PARTS = 5
"""Number of parts of the text; a part has at least 4 MiB of lines."""
TRAINING_ARGUMENTS = [
    argument for argument in SMALL_RUN if "vocab" not in argument and "validation" not in argument
]
INTERRUPTED = "progress saved. Run the same command to resume."


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with text.jsonl, mostly documents that a filter drops, and tokenizer/, one token per byte."""
    folder, generator = tmp_path_factory.mktemp("material"), random.Random(0)
    words = ["가을", "하늘", "바다", "the", "of", "and", "model", "token", "data", "안녕", "loss"]
    padding = " ".join(generator.choices(words, k=2 * MAX_CHARS))
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        while file.tell() < PARTS * 4 * 2**20:
            for _ in range(3):
                text = " ".join(generator.choices(words, k=generator.randrange(30, 300)))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            file.write(json.dumps({"text": f"{generator.random()} {padding}"}, ensure_ascii=False) + "\n")
    make_byte_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture
def arguments(material: Path) -> list[str]:
    return make_arguments(material / "text.jsonl", material)


@pytest.fixture(scope="module")
def expected(material: Path) -> dict[str, bytes]:
    """Returns the content of the store that a single uninterrupted process prepares."""
    arguments = [*make_arguments(material / "text.jsonl", material), "data.workers=1", "output=store"]
    done = run_command(material, "krill-preprocess", *arguments)
    assert done.returncode == 0, done.stderr
    return read_store_content(material / "store")


def make_arguments(text: Path, material: Path) -> list[str]:
    return [
        "data=files", f"data.paths=[{text}]", "tokenizer=pretrained",
        f"tokenizer.path={material / 'tokenizer'}", f"data.filters=[{{name: length, max_chars: {MAX_CHARS}}}]",
        "data.validation_fraction=0.02", "data.engine=hf",
    ]  # fmt: skip


def console_script(command: str) -> str:
    return str(Path(sys.executable).with_name(f"krill-{command}"))


class StartedCommand:
    """A command in its own session, forked from the server of the tests; its messages go to a file."""

    def __init__(self, folder: Path, file: Path, command: str, *arguments: str):
        self._file = file
        with open(file, "wb") as messages:
            self._process = get_server().spawn(
                [console_script(command), *arguments], env=get_clean_environment(), cwd=folder,
                stdout=subprocess.DEVNULL, stderr=messages,
            )  # fmt: skip
        self.pid = self._process.pid

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` is true or the command has ended."""
        while self._process.poll() is None and not condition():
            time.sleep(0.001)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        """Returns the exit code and the messages, once the command has ended."""
        return self._process.wait(seconds), self._file.read_text()


Start = Callable[..., StartedCommand]


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start("preprocess", …) starts krill-preprocess in tmp_path."""
    folder, numbers = tmp_path_factory.mktemp("messages"), count()
    return lambda *command: StartedCommand(tmp_path, folder / str(next(numbers)), *command)


def list_parts(partial: Path) -> dict[str, int]:
    """Returns the finished parts of a partial store with their modification times."""
    return {path.name: path.stat().st_mtime_ns for path in partial.glob("parts/*.npz")}


def count_processes(session: int) -> int:
    """Returns the number of running processes of a session."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, process_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        count += int(process_session) == session and state != "Z"
    return count


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_preparation_resumes_to_the_same_bytes(
    krill: Krill, start: Start, arguments: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    partial = tmp_path / ".store.partial"
    moments: Sequence[Callable[[], bool]] = (
        lambda: len(list_parts(partial)) >= 1,
        lambda: len(list_parts(partial)) >= 3,
        lambda: any(partial.glob("train-*")),
    )
    finished: dict[str, int] = {}
    for moment in moments:
        process = start("preprocess", *arguments, "data.workers=2", "output=store")
        process.wait_until(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list_parts(partial).items() >= finished.items()  # finished parts are not written again
        finished = list_parts(partial)
        for _ in range(100):
            if not count_processes(process.pid):
                break
            time.sleep(0.1)
        assert not count_processes(process.pid)
    assert len(finished) >= 3
    (partial / ".manifest.json.1.partial").write_text("left by a killed writer")

    krill("preprocess", *arguments, "data.workers=2", "output=store")
    assert read_store_content(tmp_path / "store") == expected


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("preprocess", signal.SIGTERM, 75),
        ("preprocess", signal.SIGINT, 130),
        ("train", signal.SIGUSR1, 75),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR1 to krill-train"],
)
def test_repeated_signals_stop_the_preparation_once(
    krill: Krill, start: Start, arguments: list[str], tmp_path: Path, command: str, number: int, code: int
) -> None:
    process = start(command, *arguments, "data.workers=2", *(SMALL_RUN[:3] if command == "train" else ()))
    process.wait_until(lambda: any(tmp_path.glob("outputs/data/.*.partial/parts/*.npz")))
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.02)
    returncode, messages = process.wait(60)
    assert returncode == code
    assert messages.splitlines()[-1] == (
        f"krill-{command}: interrupted by {signal.Signals(number).name}; {INTERRUPTED}"
    )

    (partial,) = tmp_path.glob("outputs/data/.*.partial")
    assert list_parts(partial)
    krill("preprocess", *arguments)
    assert not list(tmp_path.glob("outputs/data/.*.partial"))


def test_full_disk_raises_and_the_preparation_resumes(
    krill: Krill, arguments: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A file size limit replaces a full disk: the parts fit, the merged store does not."""
    max_bytes = max(map(len, expected.values())) // 2

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    failed = subprocess.run(
        [console_script("preprocess"), *arguments, "output=store"],
        cwd=tmp_path, text=True, capture_output=True, preexec_fn=limit_file_size,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith(
        f"krill-preprocess: error: {tmp_path / '.store.partial'}"
    )
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "store").exists()

    krill("preprocess", *arguments, "output=store")
    assert read_store_content(tmp_path / "store") == expected
    record = json.loads((tmp_path / "store" / "record.json").read_text())
    assert record["documents"] == 0, "documents were encoded again"


def test_unusable_output_raises_before_any_work(krill: Krill, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.txt").write_text("in the way")
    for output, path, code in ("file", "file", 1), ("file/below", "file", 1), ("folder", "folder", 2):
        done = krill("preprocess", *arguments, f"output={output}", code=code)
        assert done.stderr.splitlines()[-1].startswith(f"krill-preprocess: error: {tmp_path / path}")
        assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"file", "folder"}


def test_concurrent_commands_prepare_once_and_wait(
    start: Start, arguments: list[str], tmp_path: Path
) -> None:
    training = [*arguments, *TRAINING_ARGUMENTS]
    processes = [start("preprocess", *arguments), start("preprocess", *arguments), start("train", *training)]
    codes, messages = zip(*(process.wait() for process in processes), strict=True)
    assert codes == (0, 0, 0), messages
    assert sum("tokens      prepared" in text for text in messages) == 1
    assert sum("tokens      reused" in text for text in messages) == 2
    assert any("for another process that is creating" in text for text in messages)


def test_concurrent_tasks_and_a_full_preparation_give_the_same_store(
    start: Start, arguments: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    jobs = [["data.num_tasks=2", "data.task=0"], ["data.num_tasks=2", "data.task=1"], []]
    processes = [start("preprocess", *arguments, *job, "data.workers=1", "output=store") for job in jobs]
    codes, messages = zip(*(process.wait() for process in processes), strict=True)
    assert codes == (0, 0, 0), messages
    assert read_store_content(tmp_path / "store") == expected


def test_tasks_are_prepared_by_a_sweep_and_merged(
    krill: Krill, arguments: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    sweep = ("-m", *arguments, "data.num_tasks=6", "data.task=range(0,6)")  # more tasks than parts
    krill("preprocess", *sweep)
    (partial,) = tmp_path.glob("outputs/data/.*.partial")
    before = list_parts(partial)
    assert len(before) == PARTS
    (partial / "parts" / "00002.npz").unlink()

    refused = krill("preprocess", *arguments, "data.num_tasks=6", code=1)
    assert "not prepared yet: task 3" in refused.stderr
    assert "krill-preprocess -m data.num_tasks=6 data.task=3" in refused.stderr
    remaining = {name: modified for name, modified in before.items() if name != "00002.npz"}
    assert list_parts(partial) == remaining

    krill("preprocess", *sweep)
    assert list_parts(partial).items() >= remaining.items()
    merged = krill("preprocess", *arguments, "data.num_tasks=6")
    assert read_store_content(tmp_path / merged.stdout.strip()) == expected

    shutil.rmtree(tmp_path / "outputs" / "data")
    krill("preprocess", *sweep)  # the points are finished, but their result was deleted
    assert len(list_parts(partial)) == PARTS


def test_training_merges_tasks_and_reports_a_missing_one(
    krill: Krill, arguments: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    task_arguments = (*arguments, "data.num_tasks=2")
    training = (*task_arguments, *TRAINING_ARGUMENTS)
    krill("preprocess", *task_arguments, "data.task=0")
    refused = krill("train", *training, code=1)
    assert "not prepared yet: task 1" in refused.stderr
    assert not (tmp_path / "outputs" / "runs").exists()

    krill("preprocess", *task_arguments, "data.task=1")
    krill("train", *training)
    (store,) = tmp_path.glob("outputs/data/files-*")
    assert read_store_content(store) == expected


def test_invalid_tasks_raise(krill: Krill, arguments: list[str], tmp_path: Path) -> None:
    for command, job in (
        ("preprocess", ["data.task=1"]),
        ("preprocess", ["data.num_tasks=2", "data.task=2"]),
        ("train", ["data.num_tasks=2", "data.task=0"]),
        ("train", ["-m", "data.num_tasks=2", "data.task=0,1"]),
    ):
        done = krill(command, *arguments, *job, code=2)
        assert "task" in done.stderr
    assert not list(tmp_path.iterdir())


GROWING_FILTER = """
from pathlib import Path

def keep(text):
    if not Path("grown").exists():
        Path("grown").touch()
        with open("text.jsonl", "a") as file:
            file.write('{"text": "a document that is appended during the preparation"}\\n')
    return True
"""


def test_text_that_changes_during_the_preparation_raises(
    krill: Krill, material: Path, tmp_path: Path
) -> None:
    text = "a text that is long enough to pass the rule for the minimum number of characters of a document"
    lines = (json.dumps({"text": f"document {number}: {text}"}) for number in range(99))
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "growing.py").write_text(GROWING_FILTER)
    arguments = (
        *make_arguments(Path("text.jsonl"), material), "data.min_chars=1",
        "data.filters=[{name: custom, keep: 'growing.py:keep'}]",
    )  # fmt: skip
    done = krill("preprocess", *arguments, code=2)
    assert "changed" in done.stderr
    assert not [path for path in tmp_path.glob("outputs/data/.*") if path.is_dir()]

    krill("preprocess", *arguments)
    (store,) = tmp_path.glob("outputs/data/files-*")
    assert json.loads((store / "manifest.json").read_text())["read"]["documents"] == 100

    (tmp_path / "grown").unlink()
    done = krill("preprocess", *arguments, "data.num_tasks=1", "data.task=0", "data.min_chars=2", code=2)
    assert "changed" in done.stderr
    assert not list(tmp_path.glob("outputs/data/.*/parts/*.npz"))

    (tmp_path / "grown").unlink()
    arguments = ("data=files", *arguments[1:2], *arguments[-2:], "tokenizer.vocab_size=300")
    done = krill("tokenizer", *arguments, code=2)
    assert "changed" in done.stderr
    assert not list(tmp_path.glob("outputs/tokenizers/bpe*"))


def test_partial_output_of_other_settings_is_not_reused(krill: Krill, material: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n{"text": "three"}\n')
    arguments = make_arguments(Path("text.jsonl"), material)
    krill("preprocess", *arguments, "data.min_chars=1", "output=store")
    (tmp_path / "store").rename(tmp_path / ".store.partial")  # killed before it was renamed
    (tmp_path / ".store.partial" / "train-00001.tokens").write_text("another shard")
    for output in ("store", "fresh"):
        krill("preprocess", *arguments, "data.min_chars=4", f"output={output}")
    assert read_store_content(tmp_path / "store") == read_store_content(tmp_path / "fresh")


def test_folder_name_depends_on_what_determines_the_tokens(
    krill: Krill, material: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n')
    (tmp_path / "custom.py").write_text("def keep(text):\n    return True\n")
    excluded = ("data.filters", "data.engine")
    arguments = [
        argument
        for argument in make_arguments(Path("a.jsonl"), material)
        if not argument.startswith(excluded)
    ]

    def list_folders(*overrides: str) -> list[str]:
        done = krill("preprocess", "-m", *arguments, *overrides, "dry_run=true")
        return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("tokens ")]

    custom = "data.filters=[{name: custom, keep: 'custom.py:keep'}]"
    same = list_folders(custom, "data.workers=null,2", "data.engine=hf,auto", "data.num_tasks=3")
    assert len(same) == 4
    assert len(set(same)) == 1
    others = list_folders("data.min_chars=1,2", "data.normalize=none,nfc", "data.minhash.threshold=null,0.8")
    assert len(set(others)) == 8
    (tmp_path / "custom.py").write_text("def keep(text):\n    return False\n")
    changed = list_folders(custom)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "anothes"}\n')
    assert len({*same, *others, *changed, *list_folders(custom)}) == 1 + 8 + 1 + 1
    assert not (tmp_path / "outputs").exists()


NAMES = (
    "a b",
    "it's",
    'q"uote',
    "한글",
    "com,ma",
    "new\nline",
    "br[0]acket",
    "{brace}",
    "dollar$x",
    "eq=ual",
    "st*r",
)


def test_files_with_unusual_names_are_read(krill: Krill, material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "이상한, 이름"
    for number, name in enumerate(NAMES):
        path = folder / name / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"text": f"document number {number}"}) + "\n{cut", encoding="utf-8-sig")
    arguments = [
        argument for argument in make_arguments(folder, material) if not argument.startswith("data.paths")
    ]
    arguments += ["data.min_chars=1", "data.validation_fraction=0"]
    for paths in ("['이상한, 이름']", "'이상한, 이름/**/*.jsonl'"):
        store = tmp_path / krill("preprocess", *arguments, f"data.paths={paths}").stdout.strip()
        manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["splits"]["train"]["documents"] == len(NAMES)
        (skipped,) = manifest["skipped"].values()
        assert skipped["records"] == len(NAMES)

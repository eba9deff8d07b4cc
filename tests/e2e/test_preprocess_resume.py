"""A preparation that is killed, stopped, out of space, given twice or shared by shards: the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import SMALL, Command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

pytestmark = pytest.mark.slow

LONG = 3000
PARTS = 5
"""A part is at least 4 MiB of lines."""
GO_ON = "what is done stays, the same command goes on"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text.jsonl, of as many parts, but mostly of documents that a filter drops; tokenizer/, one token a byte."""
    folder, choose = tmp_path_factory.mktemp("material"), random.Random(0)
    words = ["가을", "하늘", "바다", "the", "of", "and", "model", "token", "data", "안녕", "loss"]
    padding = " ".join(choose.choices(words, k=2 * LONG))
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        while file.tell() < PARTS * 4 * 2**20:
            for _ in range(3):
                text = " ".join(choose.choices(words, k=choose.randrange(30, 300)))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            file.write(json.dumps({"text": f"{choose.random()} {padding}"}, ensure_ascii=False) + "\n")
    (folder / "tokenizer").mkdir()
    tokens = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens[:3])
    backend.save(str(folder / "tokenizer" / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.fixture
def words(material: Path) -> list[str]:
    return settings(material / "text.jsonl", material)


@pytest.fixture(scope="module")
def expected(material: Path) -> dict[str, bytes]:
    """The store that one process makes when it is let alone."""
    words = [*settings(material / "text.jsonl", material), "data.workers=1", "output=store"]
    subprocess.run([script("preprocess"), *words], cwd=material, check=True, capture_output=True)
    return content(material / "store")


def settings(text: Path, material: Path) -> list[str]:
    return [
        "data=files", f"data.paths=[{text}]", "tokenizer=pretrained",
        f"tokenizer.path={material / 'tokenizer'}", f"data.filters=[{{name: length, max_chars: {LONG}}}]",
        "data.validation_fraction=0.02", "data.engine=hf",
    ]  # fmt: skip


def content(store: Path) -> dict[str, bytes]:
    """All that is in the folder, but how it was made."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "record.json"}


def script(command: str) -> str:
    return str(Path(sys.executable).with_name(f"krill-{command}"))


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start("preprocess", …): the command begins in tmp_path, in a session of its own."""

    def begin(command: str, *words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [script(command), *words], cwd=tmp_path, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return begin


def wait_until(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    while process.poll() is None and not there():
        time.sleep(0.001)


def made(partial: Path) -> dict[str, int]:
    """The finished parts of a preparation that goes on there, and when each was made."""
    return {path.name: path.stat().st_mtime_ns for path in partial.glob("parts/*.npz")}


def alive(session: int) -> int:
    """How many processes of a session live."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        found += int(of) == session and state != "Z"
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_it_goes_on_to_the_same_bytes(
    krill: Command, start: Start, words: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    partial = tmp_path / ".store.partial"
    moments: Sequence[Callable[[], bool]] = (
        lambda: len(made(partial)) >= 1,
        lambda: len(made(partial)) >= 3,
        lambda: any(partial.glob("train-*")),
    )
    done: dict[str, int] = {}
    for moment in moments:
        process = start("preprocess", *words, "data.workers=2", "output=store")
        wait_until(process, moment)
        process.kill()
        process.communicate()
        assert made(partial).items() >= done.items()  # what was made is not made again
        done = made(partial)
        for _ in range(100):
            if not alive(process.pid):
                break
            time.sleep(0.1)
        assert not alive(process.pid)
    assert len(done) >= 3
    (partial / ".manifest.json.1.partial").write_text("what a killed writer leaves")

    krill("preprocess", *words, "data.workers=2", "output=store")
    assert content(tmp_path / "store") == expected


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("preprocess", signal.SIGTERM, 75),
        ("preprocess", signal.SIGINT, 130),
        ("train", signal.SIGUSR1, 75),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR1 to krill-train"],
)
def test_a_signal_stops_it_once_however_often_it_is_sent(
    krill: Command, start: Start, words: list[str], tmp_path: Path, command: str, number: int, code: int
) -> None:
    process = start(command, *words, "data.workers=2", *(SMALL[:3] if command == "train" else ()))
    wait_until(process, lambda: any(tmp_path.glob("outputs/data/.*.partial/parts/*.npz")))
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.02)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == code
    assert messages.splitlines()[-1] == (
        f"krill-{command}: error: stopped by {signal.Signals(number).name}; {GO_ON}"
    )

    (partial,) = tmp_path.glob("outputs/data/.*.partial")
    assert made(partial)
    krill("preprocess", *words)
    assert not list(tmp_path.glob("outputs/data/.*.partial"))


def test_without_space_it_says_so_and_goes_on_when_there_is_some(
    krill: Command, words: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: the parts fit, the store they are merged to does not."""
    largest = max(map(len, expected.values()))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    failed = subprocess.run(
        [script("preprocess"), *words, "output=store"],
        cwd=tmp_path, text=True, capture_output=True, preexec_fn=limit,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.splitlines()[-1].startswith(
        f"krill-preprocess: error: {tmp_path / '.store.partial'}"
    )
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "store").exists()

    krill("preprocess", *words, "output=store")
    assert content(tmp_path / "store") == expected
    assert (
        json.loads((tmp_path / "store" / "record.json").read_text())["documents"] == 0
    )  # none encoded again


def test_a_place_that_cannot_be_used_is_told_before_the_work(
    krill: Command, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("in the way")
    for output, named, code in ("file", "file", 1), ("file/below", "file", 1), ("folder", "folder", 2):
        done = krill("preprocess", *words, f"output={output}", code=code)
        assert done.stderr.splitlines()[-1].startswith(f"krill-preprocess: error: {tmp_path / named}")
        assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"file", "folder"}


def test_one_makes_it_and_the_others_wait(start: Start, words: list[str], tmp_path: Path) -> None:
    training = [*words, *(word for word in SMALL if "vocab" not in word and "validation" not in word)]
    processes = [start("preprocess", *words), start("preprocess", *words), start("train", *training)]
    messages = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], messages
    assert sum("tokens: made" in text for text in messages) == 1
    assert sum("tokens: reused" in text for text in messages) == 2
    assert any("waiting for another process" in text for text in messages)


def test_jobs_of_shards_and_a_whole_preparation_do_not_disturb_each_other(
    start: Start, words: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    jobs = [["data.num_tasks=2", "data.task=0"], ["data.num_tasks=2", "data.task=1"], []]
    processes = [start("preprocess", *words, *job, "data.workers=1", "output=store") for job in jobs]
    messages = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], messages
    assert content(tmp_path / "store") == expected


def test_shards_are_prepared_by_a_sweep_and_merged(
    krill: Command, words: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    sweep = ("-m", *words, "data.num_tasks=6", "data.task=range(0,6)")  # more than there are parts
    krill("preprocess", *sweep)
    (partial,) = tmp_path.glob("outputs/data/.*.partial")
    before = made(partial)
    assert len(before) == PARTS
    (partial / "parts" / "00002.npz").unlink()

    refused = krill("preprocess", *words, "data.num_tasks=6", code=1)
    assert "not prepared yet: shard 3" in refused.stderr
    assert "krill-preprocess -m data.num_tasks=6 data.task=3" in refused.stderr
    assert made(partial) == {name: moment for name, moment in before.items() if name != "00002.npz"}

    krill("preprocess", *sweep)
    assert made(partial).items() >= {name: at for name, at in before.items() if name != "00002.npz"}.items()
    merged = krill("preprocess", *words, "data.num_tasks=6")
    assert content(tmp_path / merged.stdout.strip()) == expected

    shutil.rmtree(tmp_path / "outputs" / "data")
    krill("preprocess", *sweep)  # the points are finished, but what they made is gone
    assert len(made(partial)) == PARTS


def test_training_merges_shards_and_names_one_that_is_missing(
    krill: Command, words: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    shards = (*words, "data.num_tasks=2")
    training = (*shards, *(word for word in SMALL if "vocab" not in word and "validation" not in word))
    krill("preprocess", *shards, "data.task=0")
    refused = krill("train", *training, code=1)
    assert "not prepared yet: shard 1" in refused.stderr
    assert not (tmp_path / "outputs" / "runs").exists()

    krill("preprocess", *shards, "data.task=1")
    krill("train", *training)
    (store,) = tmp_path.glob("outputs/data/files-*")
    assert content(store) == expected


def test_a_shard_that_cannot_be_is_refused(krill: Command, words: list[str], tmp_path: Path) -> None:
    for command, job in (
        ("preprocess", ["data.task=1"]),
        ("preprocess", ["data.num_tasks=2", "data.task=2"]),
        ("train", ["data.num_tasks=2", "data.task=0"]),
        ("train", ["-m", "data.num_tasks=2", "data.task=0,1"]),
    ):
        done = krill(command, *words, *job, code=2)
        assert "shard" in done.stderr
    assert not list(tmp_path.iterdir())


GROWS = """
from pathlib import Path

def keep(text):
    if not Path("grown").exists():
        Path("grown").touch()
        with open("text.jsonl", "a") as file:
            file.write('{"text": "another one, of which nobody knew when it began"}\\n')
    return True
"""


def test_a_text_that_changes_while_it_is_read_makes_no_store(
    krill: Command, material: Path, tmp_path: Path
) -> None:
    text = "one of those that are long enough, not of the few that are short and of no use to anybody"
    lines = (json.dumps({"text": f"document {number}: {text}"}) for number in range(99))
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "grows.py").write_text(GROWS)
    words = (
        *settings(Path("text.jsonl"), material), "data.min_chars=1",
        "data.filters=[{name: custom, keep: 'grows.py:keep'}]",
    )  # fmt: skip
    done = krill("preprocess", *words, code=2)
    assert "changed" in done.stderr
    assert not [path for path in tmp_path.glob("outputs/data/.*") if path.is_dir()]

    krill("preprocess", *words)
    (store,) = tmp_path.glob("outputs/data/files-*")
    assert json.loads((store / "manifest.json").read_text())["read"]["documents"] == 100

    (tmp_path / "grown").unlink()
    done = krill("preprocess", *words, "data.num_tasks=1", "data.task=0", "data.min_chars=2", code=2)
    assert "changed" in done.stderr
    assert not list(tmp_path.glob("outputs/data/.*/parts/*"))

    (tmp_path / "grown").unlink()
    words = ("data=files", *words[1:2], *words[-2:], "tokenizer.vocab_size=300")
    done = krill("tokenizer", *words, code=2)
    assert "changed" in done.stderr
    assert not list(tmp_path.glob("outputs/tokenizers/bpe*"))


def test_a_place_that_was_begun_with_other_settings_holds_nothing_of_them(
    krill: Command, material: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n{"text": "three"}\n')
    words = settings(Path("text.jsonl"), material)
    krill("preprocess", *words, "data.min_chars=1", "output=store")
    (tmp_path / "store").rename(tmp_path / ".store.partial")  # killed before it got its name
    (tmp_path / ".store.partial" / "train-00001.tokens").write_text("another shard")
    for output in ("store", "fresh"):
        krill("preprocess", *words, "data.min_chars=4", f"output={output}")
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_what_determines_the_tokens_names_the_folder(krill: Command, material: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "another"}\n')
    (tmp_path / "mine.py").write_text("def keep(text):\n    return True\n")
    words = [
        word for word in settings(Path("a.jsonl"), material) if not word.startswith(("data.filters", "data.engine"))
    ]  # fmt: skip

    def folders(*more: str) -> list[str]:
        done = krill("preprocess", "-m", *words, *more, "dry_run=true")
        return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("tokens ")]

    own = "data.filters=[{name: custom, keep: 'mine.py:keep'}]"
    same = folders(own, "data.workers=null,2", "data.engine=hf,auto", "data.num_tasks=3")
    assert len(same) == 4
    assert len(set(same)) == 1
    others = folders("data.min_chars=1,2", "data.normalize=none,nfc", "data.minhash.threshold=null,0.8")
    assert len(set(others)) == 8
    (tmp_path / "mine.py").write_text("def keep(text):\n    return False\n")
    changed = folders(own)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "anothes"}\n')
    assert len({*same, *others, *changed, *folders(own)}) == 1 + 8 + 1 + 1
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


def test_files_may_have_any_name(krill: Command, material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "이상한, 이름"
    for number, name in enumerate(NAMES):
        place = folder / name / f"{name}.jsonl"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps({"text": f"document number {number}"}) + "\n{cut", encoding="utf-8-sig")
    words = [word for word in settings(folder, material) if not word.startswith("data.paths")]
    words += ["data.min_chars=1", "data.validation_fraction=0"]
    for paths in ("['이상한, 이름']", "'이상한, 이름/**/*.jsonl'"):
        store = tmp_path / krill("preprocess", *words, f"data.paths={paths}").stdout.strip()
        manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["splits"]["train"]["documents"] == len(NAMES)
        (skipped,) = manifest["skipped"].values()
        assert skipped["records"] == len(NAMES)

"""Work is done once wherever it is done; nobody waits for the dead, and the dead leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krill.data.worker_pool import ProgressCallback, WorkerPool, count_cpu_cores
from krill.errors import KrillError, UsageError

WorkResults = Iterator[tuple[int, Any]]


def double(common: int, items: Iterable[int], advance: ProgressCallback) -> WorkResults:
    for item in items:
        advance(1, item)
        yield item, common + 2 * item


def refuse(common: None, items: Iterable[int], advance: ProgressCallback) -> WorkResults:
    for item in items:
        raise UsageError(f"item {item} is of no use")
    yield from ()


def die(common: None, items: Iterable[int], advance: ProgressCallback) -> WorkResults:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def run_forever(folder: Path, items: Iterable[int], advance: ProgressCallback) -> WorkResults:
    for item in items:
        (folder / f"{item}.pid").write_text(str(os.getpid()))
        while True:
            advance(1, 1)
            time.sleep(0.01)
    yield from ()


def report_threads(common: None, items: Iterable[int], advance: ProgressCallback) -> WorkResults:
    for item in items:
        yield item, f"{os.environ['RAYON_NUM_THREADS']} {os.environ['TOKENIZERS_PARALLELISM']}"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_done_once_and_counted(workers: int) -> None:
    counts: Counter[str] = Counter()

    def tick(documents: int, text_bytes: int) -> None:
        counts.update(documents=documents, text_bytes=text_bytes)

    crew = WorkerPool(workers, 1, tick)
    assert sorted(crew.map_unordered(double, 100, range(20))) == [
        (item, 100 + 2 * item) for item in range(20)
    ]
    assert counts == {"documents": 20, "text_bytes": sum(range(20))}
    assert crew.estimate_peak_memory() > 10_000_000


def test_what_the_work_raises_arrives() -> None:
    with pytest.raises(UsageError, match="item 0 is of no use"):
        list(WorkerPool(2, 1, lambda *_: None).map_unordered(refuse, None, [0]))


def test_a_worker_that_is_killed_is_an_error_and_no_wait() -> None:
    with pytest.raises(KrillError, match=r"data\.workers=1"):
        list(WorkerPool(2, 1, lambda *_: None).map_unordered(die, None, [0, 1]))


def test_workers_know_their_threads() -> None:
    ((_, found),) = WorkerPool(2, 3, lambda *_: None).map_unordered(report_threads, None, [0])
    assert found == "3 true"


def test_a_parent_that_stops_dismisses_its_workers(tmp_path: Path) -> None:
    def stop(documents: int, text_bytes: int) -> None:
        if documents:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(WorkerPool(2, 1, stop).map_unordered(run_forever, tmp_path, [0, 1]))
    assert_gone(tmp_path)


def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_workers import endless\n"
        "from krill.data.worker_pool import Crew\n"
        "if __name__ == '__main__':\n"
        "    list(Crew(2, 1, lambda *_: None).do(endless, Path(sys.argv[2]), [0, 1]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)])
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    finally:
        parent.kill()
        parent.wait()
    assert_gone(tmp_path)


def assert_gone(folder: Path) -> None:
    for file in folder.glob("*.pid"):
        wait_until(lambda file=file: not is_alive(int(file.read_text())))


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_cores_are_those_that_are_left() -> None:
    assert 1 <= count_cpu_cores() <= (os.cpu_count() or 1)

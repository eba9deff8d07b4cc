"""Tests of the worker pool: every item once, no blocking on killed workers, no workers without a parent."""

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

from krill.data import worker_pool
from krill.data.worker_pool import ProgressCallback, WorkerPool
from krill.errors import KrillError, UsageError
from krill.resources import count_cpu_cores

WorkResults = Iterator[tuple[int, Any]]


def double(context: int, items: Iterable[int], on_progress: ProgressCallback) -> WorkResults:
    for item in items:
        on_progress(1, item)
        yield item, context + 2 * item


def raise_usage_error(context: None, items: Iterable[int], on_progress: ProgressCallback) -> WorkResults:
    for item in items:
        raise UsageError(f"item {item} cannot be used")
    yield from ()


def kill_self(context: None, items: Iterable[int], on_progress: ProgressCallback) -> WorkResults:
    worker_pool._worker_state[2].get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
    yield from ()


def run_forever(folder: Path, items: Iterable[int], on_progress: ProgressCallback) -> WorkResults:
    for item in items:
        (folder / f"{item}.pid").write_text(str(os.getpid()))
        while True:
            on_progress(1, 1)
            time.sleep(0.01)
    yield from ()


def report_threads(context: None, items: Iterable[int], on_progress: ProgressCallback) -> WorkResults:
    for item in items:
        yield item, f"{os.environ['RAYON_NUM_THREADS']} {os.environ['TOKENIZERS_PARALLELISM']}"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_processed_and_counted_once(workers: int) -> None:
    counts: Counter[str] = Counter()

    def on_progress(documents: int, text_bytes: int) -> None:
        counts.update(documents=documents, text_bytes=text_bytes)

    pool = WorkerPool(workers, 1, on_progress)
    assert sorted(pool.map_unordered(double, 100, range(20))) == [
        (item, 100 + 2 * item) for item in range(20)
    ]
    assert counts == {"documents": 20, "text_bytes": sum(range(20))}
    assert pool.estimate_peak_memory() > 10_000_000


def test_exceptions_of_the_work_function_are_raised() -> None:
    with pytest.raises(UsageError, match="item 0 cannot be used"):
        list(WorkerPool(2, 1, lambda *_: None).map_unordered(raise_usage_error, None, [0]))


def test_worker_killed_with_the_lock_raises_instead_of_blocking() -> None:
    with pytest.raises(KrillError, match=r"data\.workers=1"):
        list(WorkerPool(2, 1, lambda *_: None).map_unordered(kill_self, None, [0]))


def test_workers_get_their_number_of_threads() -> None:
    ((_, threads),) = WorkerPool(2, 3, lambda *_: None).map_unordered(report_threads, None, [0])
    assert threads == "3 true"


def test_workers_exit_when_the_parent_stops(tmp_path: Path) -> None:
    def stop(documents: int, text_bytes: int) -> None:
        if documents:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(WorkerPool(2, 1, stop).map_unordered(run_forever, tmp_path, [0, 1]))
    assert_exited(tmp_path)


def test_workers_exit_when_the_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_worker_pool import run_forever\n"
        "from krill.data.worker_pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    list(WorkerPool(2, 1, lambda *_: None).map_unordered(run_forever, Path(sys.argv[2]), [0, 1]))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)])
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    finally:
        parent.kill()
        parent.wait()
    assert_exited(tmp_path)


def assert_exited(folder: Path) -> None:
    for file in folder.glob("*.pid"):
        wait_until(lambda file=file: not is_alive(int(file.read_text())))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_core_count_is_within_the_machine() -> None:
    assert 1 <= count_cpu_cores() <= (os.cpu_count() or 1)


def run_out_of_memory(_: Any, items: Any, on_progress: Any) -> Any:
    raise MemoryError("Unable to allocate 600. MiB")
    yield


@pytest.mark.parametrize(("workers", "remedy"), [(1, "split the largest documents"), (2, "data.workers=1")])
def test_too_little_memory_is_reported_with_what_to_lower(workers: int, remedy: str) -> None:
    pool = WorkerPool(workers, 1, lambda *_: None)
    with pytest.raises(KrillError, match=f"out of memory .Unable to allocate 600. MiB.*{remedy}") as error:
        list(pool.map_unordered(run_out_of_memory, None, [0]))
    assert error.value.exit_code == 1


def test_stopped_worker_is_named_and_does_not_outlive_the_pool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_one(documents: int, text_bytes: int) -> None:
        file = tmp_path / "0.pid"
        if "is stopped" in caplog.text:
            raise KeyboardInterrupt
        if documents and file.exists():
            os.kill(int(file.read_text()), signal.SIGSTOP)

    with pytest.raises(KeyboardInterrupt):
        list(WorkerPool(2, 1, stop_one).map_unordered(run_forever, tmp_path, [0, 1]))
    assert f"process {(tmp_path / '0.pid').read_text()} on " in caplog.text
    assert_exited(tmp_path)

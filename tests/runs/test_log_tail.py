"""Reading the end of a log and following it."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from krill.runs import log_tail
from krill.runs.claim import claim
from krill.runs.log_tail import follow_log, read_last_lines, read_tail


@pytest.mark.parametrize("block", [1, 3, 2**16])
def test_last_lines_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(log_tail, "LOG_BLOCK_BYTES", block)
    file = tmp_path / "log.txt"
    generator = random.Random(0)
    for ending in ("", "\n"):
        lines = ["가" * generator.randrange(300) for _ in range(20)] + ["끝"]
        file.write_text("\n".join(lines) + ending)
        for count in (1, 2, 20, 21, 100):
            assert read_last_lines(file, count) == lines[-count:]
        assert read_last_lines(file, 0) == []
        assert read_tail(file, 3)[1] == file.stat().st_size
    file.write_text("")
    assert read_last_lines(file, 3) == []
    file.write_text("a\n\n")
    assert read_last_lines(file, 2) == ["a", ""]


def test_a_log_is_followed_until_the_run_ends_without_losing_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "LOG_POLL_SECONDS", 0.01)
    claimed = claim("a" * 64, tmp_path)
    status = {"state": "running", "signature": "a" * 64, "host": socket.gethostname(), "pid": os.getpid()}
    (claimed.folder / "status.json").write_text(json.dumps(status))
    log = claimed.folder / "log.txt"
    log.write_text("before\n")
    _, offset = read_tail(log, 1)
    log.write_text("before\nbetween\n")

    def write() -> None:
        with open(log, "ab") as file:
            for byte in "가나다\nlast\n".encode():  # a character arrives in parts
                file.write(bytes([byte]))
                file.flush()
                time.sleep(0.01)
        (claimed.folder / "status.json").write_text(json.dumps(status | {"state": "finished"}))

    writer = threading.Thread(target=write)
    writer.start()
    assert "".join(follow_log(log, offset, claimed.folder)) == "between\n가나다\nlast\n"
    writer.join()
    assert claimed.lock is not None
    claimed.lock.release()

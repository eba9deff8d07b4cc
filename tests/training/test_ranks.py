"""How the ranks of a training connect to each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_group import run_on_ranks
from torch.distributed import distributed_c10d

from krill.errors import KrillError
from krill.training import ranks


def connect_twice() -> tuple[str, str]:
    """Waits for the other rank longer than it may take to connect, then for one that never connects."""
    ranks.CONNECT_TIMEOUT, slow = timedelta(seconds=1), dist.get_rank() == 1
    with ranks.process_group("cpu"):
        time.sleep(1.5 * slow)
        received = ranks.on_rank0(lambda: "together")
        if slow:
            return received, ""
        try:
            ranks._connect_control_group()
        except KrillError as error:
            return received, str(error)
    return received, "connected"


@pytest.mark.slow
def test_ranks_connect_within_minutes_and_then_wait_for_each_other(tmp_path: Path) -> None:
    first, second = run_on_ranks(2, connect_twice, folder=tmp_path)
    assert first[0] == second[0] == "together"
    assert first[1].startswith("rank 0 on ")
    assert "export GLOO_SOCKET_IFNAME=eth0" in first[1]


def test_nccl_connects_within_minutes_with_the_device_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}
    record: Callable[..., None] = lambda backend, **options: calls.update(backend=backend, **options)  # noqa: E731
    monkeypatch.setattr(dist, "init_process_group", record)
    monkeypatch.setattr(distributed_c10d, "_set_pg_timeout", lambda timeout: calls.update(later=timeout))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(current=device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    ranks._init_process_group("cuda")
    device = torch.device("cuda", 3)
    timeouts = {"timeout": ranks.CONNECT_TIMEOUT, "later": ranks.NCCL_TIMEOUT}
    assert calls == {"backend": "nccl", "device_id": device, "current": device, **timeouts}


def test_error_of_nccl_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(backend: str, **_: Any) -> None:
        raise dist.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:94, unhandled system error, NCCL version 2.27.3\nncclSystemError: …\n"
            "Last error:\nsocketStartConnect: Connect to 127.0.1.1<41000> failed : Connection refused"
        )

    monkeypatch.setattr(dist, "init_process_group", fail)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with pytest.raises(KrillError, match=r"127\.0\.1\.1<41000> failed.*export NCCL_SOCKET_IFNAME=eth0"):
        ranks._init_process_group("cuda")

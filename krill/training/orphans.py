"""A worker that serves rows ends with the training that it serves, however that ends.

torch's own look for their parent every five seconds only: after a kill -9 the same command, given again at once,
would find them still there, with their memory and the files that they hold open.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent(worker: int = 0) -> None:
    """Have this process end as soon as its parent is gone; what DataLoader calls in each of its workers."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

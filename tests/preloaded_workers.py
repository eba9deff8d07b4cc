"""Starts the workers of preparations quickly: forks them from a server that has imported their modules.

krill spawns its workers, which import everything again; tests/data/test_worker_pool.py and the tests of whole
commands cover that.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

WORKER_MODULES = ["krill.data.part_writer", "krill.data.merge", "krill.sources.files", "pytest"]


def get_preloaded_context(method: str) -> BaseContext:
    """Replaces `multiprocessing.get_context` in krill.data.worker_pool; `method` is ignored."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WORKER_MODULES)
    return context

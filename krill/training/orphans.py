"""What a training has started ends with it, however it ends: a rank, a worker that serves rows.

After a kill -9 the same command, given again at once, would find them still there, with their memory and the files
that they hold open; torch's workers look for their parent every five seconds only, ranks never.
"""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(worker: int = 0) -> None:
    """Have the kernel (Linux) end this process when its parent has gone; DataLoader calls it in each worker."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

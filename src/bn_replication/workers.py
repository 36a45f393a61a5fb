"""Processes side by side for work that torch does: spawned, and gone with the one that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from bn_replication.errors import UserError
from bn_replication.jobs import stop_when_left

_PATIENCE = 0.5  # seconds between a worker's looks at whether the one that asked is still there


@contextmanager
def pool(count: int, fewer: str) -> Iterator[ProcessPoolExecutor]:
    """Give ``count`` processes; an interrupt ends them at once, and so does this process' own end, a kill included.

    fewer: how to ask for fewer of them. Raises :class:`UserError` if one was killed.
    """
    # Spawned, as torch's threads and a GPU's state do not live through a fork.
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (os.getpid(),))
    try:
        yield executor
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    except BrokenProcessPool as error:
        found = "found a process killed, most likely for memory, expected room for all of them"
        raise UserError(f"{found}; {fewer}") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Make this process a worker, which ends without a word: on Ctrl-C, and when ``parent`` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while True:
            stop_when_left(parent)
            time.sleep(_PATIENCE)

    threading.Thread(target=watch, daemon=True).start()

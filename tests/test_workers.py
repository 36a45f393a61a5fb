"""A pool of processes: what one of them comes to is told in a line. What a signal does to all: in faults."""

from __future__ import annotations

import os
import signal

import pytest

from bn_replication.errors import UserError
from bn_replication.workers import pool


def test_a_worker_that_is_killed_is_one_line() -> None:
    with (
        pytest.raises(UserError, match=r"^found a process killed, .*expected room for all of them; take fewer$"),
        pool(1, "take fewer") as workers,
    ):
        list(workers.map(signal.raise_signal, [signal.SIGKILL]))


def test_workers_are_gone_with_their_pool() -> None:
    with pool(2, "take fewer") as workers:
        pids = set(workers.map(_own_pid, range(8)))
    assert pids
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _own_pid(_: int) -> int:
    return os.getpid()

"""A sweep's jobs, several at a time, each in a process of its own: what ends one leaves the others alone.

A server is forked while the program has one thread and nothing heavy in it. It loads torch once and forks for
every job, which costs milliseconds: each job starts fresh, and one that is killed or runs out of memory takes
nothing with it. Whoever asks a sweep to stop, by Ctrl-C, SIGTERM or a closed terminal, asks all of its jobs, and it
waits for them; should the sweep itself be killed, its jobs notice and stop by themselves, with a checkpoint saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

_PATIENCE = 0.5  # seconds between two looks at whether the sweep is still there

Job = Mapping[str, Any]  # what JSON can hold


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asking() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a program to stop; a closed terminal's is none where it is ignored, as by nohup."""
    deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if deaf else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server:
    """Forks a process for each job; to be made before any thread is, and used in a ``with`` statement.

    Args:
        prepare: called once, in the server: imports what every job needs.
        carry_out: called with a job in the job's own process.
    """

    def __init__(self, prepare: Callable[[], object], carry_out: Callable[[Job], object]) -> None:
        # A pool of threads that numpy would make is none that a fork could keep.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        read, write = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(write)
            _leave_with(lambda: _serve(read, parent, prepare, carry_out))
        os.close(read)
        self._pipe = os.fdopen(write, "w")

    def carry_out(self, jobs: Sequence[Job], at_once: int) -> None:
        """Carry out ``jobs`` in their order, so many at a time, and return when the last has ended."""
        with self._pipe:
            json.dump({"jobs": list(jobs), "at_once": at_once}, self._pipe)
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask every job to stop and wait until all have."""
        if self._pid:
            before = {number: signal.signal(number, signal.SIG_IGN) for number in asking()}  # once is enough
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            self._pipe.close()
            self._wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> None:
        os.waitpid(self._pid, 0)
        self._pid = 0


def stop_when_left(parent: int) -> None:
    """Ask this process to stop, as SIGTERM would, if ``parent`` is no longer the one above it."""
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def _leave_with(action: Callable[[], object]) -> None:
    """End this process when ``action`` has ended, without the clean-up that is its parent's to do."""
    code = 1
    try:
        action()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _serve(pipe: int, parent: int, prepare: Callable[[], object], carry_out: Callable[[Job], object]) -> None:
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    handlers = {number: signal.signal(number, stop) for number in asking()}
    woken, wake = os.pipe()  # every signal, a child's end included, leaves a byte here
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def child(job: Job) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in handlers:  # as Ctrl-C, until the run takes over
            signal.signal(number, handlers[signal.SIGINT] if number == signal.SIGINT else signal.default_int_handler)
        carry_out(job)

    prepare()
    with os.fdopen(pipe) as file:
        text = file.read()  # all of it, or nothing where the sweep gave up
    asked = json.loads(text) if text else {"jobs": [], "at_once": 1}
    waiting, running = list(asked["jobs"]), set[int]()
    while waiting or running:
        if stopping or os.getppid() != parent:
            waiting.clear()
            for pid in running:
                os.kill(pid, signal.SIGTERM)
        while waiting and len(running) < asked["at_once"]:
            job, server = waiting.pop(0), os.getpid()
            if (pid := os.fork()) == 0:
                _leave_with(lambda job=job, server=server: child({**job, "parent": server}))
            running.add(pid)
        select.select([woken], [], [], _PATIENCE)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        for pid in list(running):  # a child that has ended stays a child until it is waited for
            if os.waitpid(pid, os.WNOHANG)[0]:
                running.remove(pid)

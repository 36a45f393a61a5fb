"""Ground of the fault tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be all that starts below. A handler of
# Python's own is not handed on: every process of a test begins with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def reap() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Kill the group of every process it was handed, whatever became of the test."""
    started: list[subprocess.Popen[str]] = []

    def function(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield function
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout:
            process.stdout.close()
        process.wait()

"""Where and with what a run was made: what a record needs so that it can be traced back and repeated."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision


def environment(device: str, threads: int) -> dict[str, Any]:
    """Return versions, machine and code revision: what a record needs to be traced back."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # it is of a class of its own
        "torchvision": torchvision.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": threads,
        **_revision(),
    }


@cache
def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@cache
def _revision() -> dict[str, Any]:
    """The code's git revision and whether the code or configuration differed from it."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        # Asked only: without the lock that "status" takes, which one that is killed leaves behind.
        command = ["git", "--no-optional-locks", "-C", root, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "src", "configs"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git": None, "dirty": None}

"""A sweep of the real program in a terminal of its own: the live picture, and what is left of it in a narrow one."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

BLOCKS = "▁▂▃▄▅▆▇█"


def watched(command: list[str], columns: int, **environment: str) -> tuple[int, str]:
    """Return the exit code of ``command`` in a terminal of so many columns, and all that it wrote there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # the terminal's last user has ended
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=120), shown.decode()


@pytest.mark.parametrize(("columns", "colour"), [(130, True), (60, False)])
def test_a_sweep_shows_a_small_curve_a_run_within_the_terminals_width(
    tmp_path: Path, columns: int, colour: bool
) -> None:
    words = ["experiment=fig1_mnist", "scale=smoke", "norm=batch", "seed=0,1", "steps=4000", "evaluate.times=24"]
    words += ["optimizer.rate=0.3", "probe.enabled=false", "wandb=disabled", f"machine.results={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "bn_replication.train", "-m", *words]
    code, text = watched(command, columns, **({} if colour else {"NO_COLOR": "1"}))
    assert code == 0, text
    assert bool(re.search(r"\x1b\[[0-9;]*m", text)) == colour
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns
    pictures = [line for line in lines if re.search(r"^\S+ +[01]  .*\d+/4000", line)]
    assert len(pictures) > 2
    curves = [re.findall(f"[{BLOCKS}]+", line) for line in pictures]
    if columns < 100:
        assert not any(curves)
    else:
        # It grows with the run, and by its end it has risen.
        lengths = [len(found[0]) for found in curves if found]
        assert max(lengths) > min(lengths)
        assert any(found and found[0][0] == BLOCKS[0] and found[0][-1] > BLOCKS[3] for found in curves)
    assert [line for line in lines if line][-1] == "2 jobs: 2 completed"

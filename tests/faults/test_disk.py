"""A disk that fills up, in the middle of any write: one clear error, earlier files whole, nothing half-written left."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.processes import INCEPTION, MLP, configuration, ended, finished, forked, place, program

from bn_replication import checkpoint, records
from bn_replication.errors import UserError
from bn_replication.runner import run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, which is really full when it is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes on ``disk``."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return ballast


@pytest.mark.parametrize(
    ("at", "leave", "saved"),
    # After the first checkpoint, with room for rows but for no second; and in the middle of a row.
    [pytest.param(5, 200_000, 4, id="save"), pytest.param(9, 0, 8, id="log")],
)
def test_a_full_disk_is_one_clear_error_and_loses_nothing(small_disk: Path, at: int, leave: int, saved: int) -> None:
    every = 4
    cfg = configuration(small_disk, *INCEPTION, f"machine.checkpoint_every={every}")
    elsewhere = configuration(small_disk.parent / "elsewhere", *INCEPTION, f"machine.checkpoint_every={every}")
    alone = finished(elsewhere, "a")
    ballast = None

    def fills(step: int, *_: object) -> None:
        nonlocal ballast
        if step == at:
            ballast = fill(small_disk, leave)

    with pytest.raises(UserError) as caught:
        run(cfg, "a", fills)
    assert "found 'No space left on device', expected room to write; earlier records are intact" in str(caught.value)
    assert "\n" not in str(caught.value)
    directory = place(cfg, "a")
    assert records.read_run_json(directory) is None
    state = checkpoint.load(directory)  # a damaged one would be warned of, which is an error here
    assert state is not None
    assert state["step"] == saved
    assert not list(directory.glob(".*.tmp"))
    assert ballast is not None
    ballast.unlink()
    assert finished(cfg, "a") == alone


@pytest.mark.parametrize("words", [("-m", "seed=0"), ("seed=0",)], ids=["a sweep", "a run"])
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_disk_where_nothing_can_be_begun_is_one_line_and_exit_code_2(
    small_disk: Path, state: str, words: tuple[str, ...], reap: Callable[..., subprocess.Popen[str]]
) -> None:
    results = small_disk / "runs"
    results.mkdir()
    if state == "full":
        fill(small_disk, 0)
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    process = reap(program(*words, *MLP, "steps=2", results=results))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert f"{results}" in said
    why = "No space left on device" if state == "full" else "Read-only file system"
    assert f"found '{why}', expected room to write" in said


def test_a_record_that_does_not_fit_is_written_when_there_is_room(small_disk: Path) -> None:
    """The last act of a run fails: the run has not ended, and the next command ends it."""
    cfg = configuration(small_disk, *INCEPTION)

    def fills_at_the_end(step: int, *_: object) -> None:
        if step == cfg.steps:
            fill(small_disk, 0)

    with pytest.raises(UserError, match="No space left on device"):
        run(cfg, "a", fills_at_the_end)
    assert records.read_run_json(place(cfg, "a")) is None
    assert not list(place(cfg, "a").glob(".*.tmp"))
    (small_disk / "ballast").unlink()
    elsewhere = configuration(small_disk.parent / "elsewhere", *INCEPTION)
    assert finished(cfg, "a") == finished(elsewhere, "a")


def test_a_limit_on_file_size_is_told_like_a_full_disk(tmp_path: Path) -> None:
    """Without a mount: the checkpoint is larger than any file of this process may be."""
    cfg = configuration(tmp_path, *INCEPTION, "machine.checkpoint_every=4")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        with pytest.raises(UserError, match="found 'File too large', expected room to write"):
            run(cfg, "a")
        os._exit(7)

    with forked(limited) as pid:
        assert ended(pid, 240) == 7
    assert checkpoint.load(place(cfg, "a")) is None
    assert not list(place(cfg, "a").glob(".*.tmp"))
    assert finished(cfg, "a") == finished(configuration(tmp_path / "alone", *INCEPTION), "a")

"""One live display for a sweep, whose jobs run in other processes.

The parent makes a directory and names it in the environment (``BN_PROGRESS``); each job, whatever process of
this machine it runs in, keeps one small JSON file there up to date; a thread of the parent reads them twice a
second. In a terminal that makes a moving picture, each run with a small curve of its held-out accuracy; elsewhere
a line when a job ends and every half minute. The picture has no colours under ``NO_COLOR`` and gives up columns,
the curve first, where the terminal is narrow.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from bn_replication.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

VARIABLE = "BN_PROGRESS"
INTERVAL = 0.5  # seconds between two looks, and between two reports of a job
PLAIN_INTERVAL = 30.0  # seconds between two plain lines
POINTS = 16  # of a small curve, each a share of the run's steps, so that all curves have one axis
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 12  # columns of a progress bar
ARM = 36  # columns of an arm's name for which others are given up; a longer name is cut
# Of the live picture's columns, the order in which a narrow terminal goes without them.
SPARED = ("held-out so far", "", "steps/s", "arm's best", "left")
GOOD = ("completed", "diverged", "skipped")  # divergence is a result
BAD = ("refused", "failed")  # by the user's mistake, and otherwise


@dataclass
class Job:
    """What a job says of itself; ``status`` is ``running`` or one of ``GOOD`` and ``BAD``."""

    study: str
    arm: str
    seed: int
    steps: int
    pid: int
    birth: str  # of the process, since a pid is used again
    begun: float  # seconds since the epoch
    step: int = 0
    rate: float = 0.0  # steps a second, since the first report
    accuracy: float | None = None
    best: float | None = None  # accuracy so far
    curve: list[float | None] = field(default_factory=list)  # accuracy by share of the steps; None: not told
    status: str = "running"
    message: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.study} {self.arm} seed={self.seed}"

    @property
    def left(self) -> float:
        """Seconds to go, infinite while nobody knows."""
        return (self.steps - self.step) / self.rate if self.rate > 0 else math.inf

    def columns(self) -> tuple[str, str, str]:
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2%}"
        return f"{self.step}/{self.steps}", f"{self.rate:.1f} steps/s", accuracy

    def line(self) -> str:
        """Return the job in one line of fixed columns."""
        steps, rate, accuracy = self.columns()
        clock = _clock(self.seconds)
        return f"{self.status:<9}  {self.name:<40}  {steps:>15}  {rate:>15}  {accuracy:>7}  {clock:>7}"


# --- the job's side --------------------------------------------------------------------------------------


class Report:
    """A job's way of saying how far it is; without a sweep above it, it says nothing."""

    def __init__(self, path: Path | None, job: Job) -> None:
        self._path, self._job = path, job
        self._first: tuple[int, float] | None = None  # step and time: a resumed run does not start at 0
        self._next = 0.0 if path else math.inf
        self._clock = time.monotonic()  # the time of day may be set back
        self._write()

    def __call__(self, step: int, accuracy: float | None = None) -> None:
        """Say that ``step`` updates are done; ``accuracy``, a fraction, is kept until the next one."""
        # Told anew at every step; only another value is news.
        if accuracy is not None and accuracy != self._job.accuracy:
            self._note(step, float(accuracy))
        self._job.step = step  # where it ends, should it end before the next word
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            self._advance(step, now)
            self._write()

    def end(self, status: str, message: str = "", step: int | None = None) -> None:
        """Say how the job ended, in a word of ``GOOD`` or ``BAD``, and where; only the first time counts."""
        assert status in GOOD + BAD, status
        if self._job.status == "running":
            self._job.status, self._job.message = status, " ".join(message.split())
            last = self._job.steps if status == "completed" else self._job.step
            self._advance(last if step is None else step, time.monotonic())
            self._next = math.inf
            self._write()

    def _note(self, step: int, accuracy: float) -> None:
        job = self._job
        job.accuracy, job.best = accuracy, max(accuracy, job.best or 0.0)
        at = _slot(step, job.steps)
        # What lay between two evaluations stood at the first of them; a resumed run does not know its beginning.
        before = job.curve[-1] if job.curve else None
        job.curve += [before] * (at - len(job.curve))
        job.curve[at:] = [accuracy]

    def _advance(self, step: int, now: float) -> None:
        self._job.step = step
        if self._first is None:
            self._first = step, now
        elif now > self._first[1] + 0.01:  # over less than that, a rate is only noise
            self._job.rate = (step - self._first[0]) / (now - self._first[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None:
            self.end("completed")
        elif isinstance(error, UserError):
            self.end("refused", str(error))
        else:
            self.end("failed", f"{type(error).__name__}: {error}")

    def _write(self) -> None:
        if self._path is None:
            return
        self._job.seconds = time.monotonic() - self._clock
        # That the sweep is gone or the disk is full is no reason to end a run.
        with contextlib.suppress(OSError):
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(asdict(self._job)))
            os.replace(temporary, self._path)


def _slot(step: int, steps: int) -> int:
    """Return the point of a curve that ``step`` belongs to; the first is for the untrained net alone."""
    return min(-(-step * (POINTS - 1) // max(steps, 1)), POINTS - 1)


def job(study: str, arm: str, seed: int, steps: int) -> Report:
    """Return the report of a job that starts now, to be used in a ``with`` statement.

    Leaving it by a :class:`UserError` is ``refused``, by any other exception ``failed``.
    """
    directory = os.environ.get(VARIABLE)
    path = Path(directory, f"{secrets.token_hex(8)}.json") if directory else None
    pid = os.getpid()
    return Report(path, Job(study, arm, seed, steps, pid, _birth(pid) or "", time.time()))


def _birth(pid: int) -> str | None:
    """Return when a process started, in the machine's own terms, or ``None`` if it no longer runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # starttime, in clock ticks since boot
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # where there is no /proc, a process that took over the pid passes for the job
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return ""


# --- the sweep's side ------------------------------------------------------------------------------------


class Sweep:
    """The display of all jobs begun under it; ``total``, how many are to come, may be set once known."""

    def __init__(self, stream: TextIO | None = None, total: int | None = None) -> None:
        self.total = total
        self._stream = stream or sys.stderr
        self._running: list[Job] = []
        self._ended: dict[Path, Job] = {}  # in the order in which they were seen to end
        self._told = 0  # how many of those have been printed
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="bn-progress-")
        except OSError as error:
            raise UserError(
                f"found no folder for temporary files ({error.strerror}), expected one with room in it; "
                "free some space or set TMPDIR=..."
            ) from None
        self._outer = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = self._directory.name
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._outer is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = self._outer
        self._look()
        self._directory.cleanup()
        with contextlib.suppress(OSError, ValueError):
            self._tell(self._print)
            self._print(self.summary())

    @property
    def counts(self) -> Counter[str]:
        """How many jobs there are of each status, ``never started`` among them."""
        counts = Counter(job.status for job in [*self._ended.values(), *self._running])
        counts["never started"] = max(0, (self.total or 0) - counts.total())
        return counts

    @property
    def best(self) -> dict[tuple[str, str], float]:
        """The best held-out accuracy that any seed of a study's arm has had under this sweep."""
        best: dict[tuple[str, str], float] = {}
        for job in [*self._ended.values(), *self._running]:
            if job.best is not None:
                key = job.study, job.arm
                best[key] = max(job.best, best.get(key, 0.0))
        return best

    def exit_code(self) -> int:
        """Return 0 if every job did what it could, 1 if any failed or never ended, else 2 if any was refused.

        A failure outranks a refusal: what the user can mend would not mend it.
        """
        if not self._done.is_set():
            self._look()
        counts = self.counts
        if counts["failed"] or counts["running"] or counts["never started"]:
            return 1
        return 2 if counts["refused"] else 0

    def summary(self) -> str:
        """Return the sweep in one line, and one more for each job that failed or was refused."""
        counts = self.counts
        notes = {"skipped": "skipped (already complete)"}
        order = (*GOOD, *BAD, "running", "never started")
        parts = [f"{counts[status]} {notes.get(status, status)}" for status in order if counts[status]]
        number = counts.total()
        lines = [f"{number} job{'s' * (number != 1)}: {', '.join(parts) or 'nothing to do'}"]
        bad = [job for job in self._ended.values() if job.status in BAD]
        return "\n".join(lines + [f"{job.status}: {job.name}: {job.message}" for job in bad])

    def _look(self) -> None:
        """Read what the jobs say; those that have ended are not read again."""
        with self._lock:
            running = []
            for path in sorted(Path(self._directory.name).glob("*.json")):
                if path in self._ended:
                    continue
                job = _read(path)
                if job.status == "running":
                    running.append(job)
                else:
                    self._ended[path] = job
            self._running = sorted(running, key=lambda job: job.begun)

    def _watch(self) -> None:
        live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        # A stream that is closed under us ends the display, not the sweep.
        with contextlib.suppress(OSError, ValueError):
            self._watch_live() if live else self._watch_plain()

    def _watch_plain(self) -> None:
        due = time.monotonic() + PLAIN_INTERVAL
        while not self._done.wait(INTERVAL):
            self._look()
            self._tell(self._print)
            if time.monotonic() > due:
                due += PLAIN_INTERVAL
                self._print(self._headline())

    def _watch_live(self) -> None:
        from rich.console import Console, Group  # 80 ms, which jobs need not spend
        from rich.live import Live

        # rich honours NO_COLOR and the terminal's width.
        console = Console(file=self._stream, highlight=False, markup=False)
        # What others print goes above the picture, unless it goes elsewhere anyway.
        both = sys.stdout.isatty()
        with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=both) as live:
            while not self._done.wait(INTERVAL):
                self._look()
                self._tell(console.print)
                blocks = not console.options.ascii_only
                table = picture(self._running, self.best, console.width, blocks)
                live.update(Group(self._headline(), *([table] if self._running else [])), refresh=True)

    def _tell(self, say: Callable[[str], object]) -> None:
        """Say a line for each job that has ended since."""
        width = shutil.get_terminal_size().columns if self._stream.isatty() else None
        for job in list(self._ended.values())[self._told :]:
            self._told += 1
            say(job.line()[:width])

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _headline(self) -> str:
        counts = self.counts
        bad = sum(counts[status] for status in BAD)
        parts = [
            f"{len(self._ended)}{f'/{self.total}' if self.total else ''} done",
            f"{counts['running']} running",
            f"{bad} failed" if bad else "",
            f"{_clock(time.monotonic() - self._begun)} so far",
            f"{_clock(self._left())} left",
        ]
        return ", ".join(part for part in parts if part)

    def _left(self) -> float:
        """Seconds to go, if the jobs to come are like those seen and as many run at a time as now."""
        left = [job.left for job in self._running]
        whole = [job.seconds for job in self._ended.values() if job.status == "completed"]
        whole = whole or [job.seconds + job.left for job in self._running]
        if not left:
            return math.inf
        to_come = self.counts["never started"] * sum(whole) / len(whole)
        return max(*left, (sum(left) + to_come) / len(left))


def picture(running: Sequence[Job], best: Mapping[tuple[str, str], float], width: int, blocks: bool = True) -> Table:
    """Return the jobs that run as a table of at most ``width`` columns.

    The small curves share both axes: from left to right a run's steps, all of them, and from the lowest to the highest
    accuracy of any. ``best`` is that of each arm; without ``blocks``, in a terminal that lacks them, there is no curve.
    """
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    told = [value for job in running for value in job.curve if value is not None]
    low, high = min(told, default=0.0), max(told, default=1.0)
    cells: dict[str, list[Any]] = {
        "arm": [job.arm for job in running],
        "seed": [str(job.seed) for job in running],
        "": [ProgressBar(total=job.steps, completed=job.step, width=BAR) for job in running],
        "steps": [f"{job.step}/{job.steps}" for job in running],
        "steps/s": [f"{job.rate:.1f}" for job in running],
        "held-out so far": [sparkline(_until_now(job), low, high).ljust(POINTS) for job in running],
        "now": ["" if job.accuracy is None else f"{job.accuracy:.2%}" for job in running],
        "arm's best": [f"{best[key]:.2%}" if (key := (job.study, job.arm)) in best else "" for job in running],
        "left": [_clock(job.left) for job in running],
    }
    if not blocks:
        del cells["held-out so far"]
    gap = 2  # columns
    sizes = {
        title: max([len(title), *(BAR if isinstance(cell, ProgressBar) else len(cell) for cell in column)])
        for title, column in cells.items()
    }
    sizes["arm"] = min(sizes["arm"], ARM)
    for title in SPARED:
        if sum(sizes.values()) + gap * len(sizes) > width:
            sizes.pop(title, None)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="")
    room = width - sum(size + gap for title, size in sizes.items() if title != "arm") - gap
    for title in sizes:
        table.add_column(
            title,
            justify="left" if title in ("arm", "", "held-out so far") else "right",
            style="cyan" if title == "held-out so far" else "",
            no_wrap=True,
            overflow="ellipsis",
            max_width=max(8, room) if title == "arm" else None,
        )
    for row in zip(*(cells[title] for title in sizes), strict=True):
        table.add_row(*(cell if isinstance(cell, ProgressBar) else Text(cell) for cell in row))
    return table


def sparkline(values: Sequence[float | None], low: float, high: float) -> str:
    """Return ``values`` as one block a value, the lowest block at ``low`` and the highest at ``high``."""
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(" " if value is None else BLOCKS[round((value - low) / step)] for value in values)


def _until_now(job: Job) -> list[float | None]:
    """Return a job's curve with its last value held until the step it is at."""
    last = job.curve[-1:] * (_slot(job.step, job.steps) + 1 - len(job.curve))
    return [*job.curve, *last]


def _read(path: Path) -> Job:
    """Return what a job says, or that it has failed if its process is gone without a word."""
    job = Job(**json.loads(path.read_text()))
    if job.status == "running" and _birth(job.pid) != job.birth:
        # Its last word may have come between the look at the file and that at the process.
        job = Job(**json.loads(path.read_text()))
        if job.status == "running":
            job.status, job.message = "failed", f"its process {job.pid} was killed at about step {job.step}"
    return job


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

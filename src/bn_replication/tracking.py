"""Weights & Biases as a mirror of a run's records, which can slow, stall or end no run.

The files under ``results/`` are the truth. Everything here happens in one background thread a run, fed by a
queue: the loop pays for a ``put``, wandb's start (0.9 s, once a process) overlaps with the loading of data,
and whatever wandb raises ends as one line of warning. If it hangs, a run waits ``PATIENCE`` s at its end.

Offline runs lie side by side in ``<directory>/wandb``. To look at them, in a terminal and without a network::

    wandb leet results/wandb                                   # browse and overlay runs
    wandb leet inspect --json results/wandb/offline-run-...    # every record, as text

and to upload them to an account: ``wandb sync results/wandb/offline-run-*``. Runs are grouped by study, their
job type is the arm; the x axis is ``step`` or ``samples_seen``, columns of their own, as wandb's step only
counts rows.

A resumed run is a new run here, as wandb cannot continue one offline: hand ``curve`` the rows already on disk
first. What was mirrored before the interruption stays beside it, unfinished, and may be deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import wandb

LOG = logging.getLogger(__name__)
INIT_TIMEOUT = 15  # seconds to reach the server; wandb's own default stalls for 100
UPLOAD_TIMEOUT = 20  # seconds to finish an upload; what is not sent stays on disk for `wandb sync`
PATIENCE = 45.0  # seconds: the two above, and some
CLEARING = 2.0  # seconds that a run waits for the service of one before it, which hung, to be let go of
_clearing: list[threading.Thread] = []
# Set once the server could not be had, so that later runs of the process do not wait for it again.
_offline = threading.Event()


class Tracker:
    """A tracker that keeps nothing: what ``wandb=disabled`` gives, and the interface of the other."""

    def curve(self, row: Mapping[str, Any]) -> None:
        """Record a row of ``curves.jsonl``, every column as it stands."""

    def activations(
        self,
        rows: Iterable[Mapping[str, Any]],
        edges: Sequence[float] | None = None,
    ) -> None:
        """Record rows of ``activations.jsonl``: percentiles, moments and, where there are any, histograms
        and gradients.

        ``edges`` bounds the bins, one more than there are counts; by default as the configuration's ``probe``
        says, which also names the percentiles. Values by unit stay in our own files.
        """

    def figure(self, name: str, path: Path) -> None:
        """Record an image file; a vector image (``.svg``) is kept as one."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """End the run with its summary and status, of which only ``failed`` is an error; once is enough."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish({}, "completed" if kind is None else "failed")


def tracker(
    *,
    mode: Literal["offline", "online", "disabled"],
    project: str,
    directory: Path,
    study: str,
    arm: str,
    seed: int,
    entity: str | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
) -> Tracker:
    """Return the tracker of one run, to be used in a ``with`` statement; several may be open at a time.

    ``config`` is the resolved configuration, nested; its ``batch_size`` (and ``replicas``) turns steps into
    ``samples_seen``. Nothing is raised here or later: a mirror that cannot be had is a warning.
    """
    if mode == "disabled":
        return Tracker()
    names = {"project": project, "entity": entity, "group": study, "job_type": arm, "name": f"{arm}-{seed}"}
    rest = {"tags": list(tags), "config": dict(config or {}), "dir": str(directory)}
    return _Mirror(mode, names | rest, patience)


class _Mirror(Tracker):
    """One wandb run, owned by a daemon thread that works through a queue of tasks until it finds ``None``."""

    def __init__(self, mode: Literal["offline", "online"], run: dict[str, Any], patience: float) -> None:
        self._mode: Literal["offline", "online"] = mode
        self._run, self._patience = run, patience
        self._tasks: queue.SimpleQueue[Callable[[wandb.Run], object] | None] = queue.SimpleQueue()
        self._exit_code = 1
        self._last_layer: list[Mapping[str, Any]] = []  # the probes' rows of the deepest nonlinearity
        self._ended = False  # by us
        self._lost = False  # by wandb
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
        self._thread.start()

    # --- the caller's side: put a task, never wait --------------------------------------------------------

    def curve(self, row: Mapping[str, Any]) -> None:
        columns = dict(row)
        self._put(lambda run: self._log(run, columns))

    def activations(
        self,
        rows: Iterable[Mapping[str, Any]],
        edges: Sequence[float] | None = None,
    ) -> None:
        rows, probe = list(rows), self._run["config"].get("probe", {})
        if not rows:  # a net without a nonlinearity
            return
        if not self._last_layer:
            deepest = list(dict.fromkeys(row["layer"] for row in rows))[-1]
        else:
            deepest = self._last_layer[-1]["layer"]
        self._last_layer += [row for row in rows if row["layer"] == deepest]
        self._put(lambda run: [self._log(run, columns) for columns in _by_step(rows, edges, probe)])

    def figure(self, name: str, path: Path) -> None:
        self._put(lambda run: run.log({f"figures/{name}": _image(Path(path))}))

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._ended:
            return
        self._ended = True
        last = {**summary, "status": status}
        if self._last_layer:
            self._put(lambda run: run.log(_bands(self._last_layer, self._run["config"].get("probe", {}))))
        self._put(lambda run: run.summary.update(last))
        self._exit_code = int(status == "failed")
        self._tasks.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            LOG.warning("wandb has not answered for %g s; the run ends without it", self._patience)
            self._lost = True
            # Its first act is to unhook the wait that wandb laid on the interpreter's exit; then it may hang.
            _clearing.append(threading.Thread(target=_teardown, daemon=True))
            _clearing[-1].start()

    def _put(self, task: Callable[[wandb.Run], object]) -> None:
        if not self._lost:
            self._tasks.put(task)

    # --- the thread's side: all of wandb ------------------------------------------------------------------

    def _work(self) -> None:
        run = None
        try:
            run = self._start()
            for axis in ("step", "samples_seen"):
                run.define_metric(axis)
            run.define_metric("*", step_metric="step")
            while (task := self._tasks.get()) is not None:
                task(run)
        except BaseException as error:  # wandb raises SystemExit and KeyboardInterrupt, too
            if not self._lost:
                LOG.warning("wandb no longer mirrors this run (its records are whole): %s", _line(error))
            self._lost = True
        try:
            if run is not None:
                run.finish(exit_code=self._exit_code)
        except BaseException as error:
            LOG.debug("wandb could not finish: %s", _line(error))
            _teardown()  # its service is gone; the next run starts another

    def _log(self, run: wandb.Run, columns: dict[str, Any]) -> None:
        config = self._run["config"]
        if batch_size := config.get("batch_size"):
            columns.setdefault("samples_seen", columns["step"] * batch_size * config.get("replicas", 1))
        # No `step=`: wandb's own counter only grows, and the probes come back to the curves' steps.
        run.log(columns)

    def _start(self) -> wandb.Run:
        # Read when wandb is imported and by the service it starts: no chatter, and no telemetry of its own.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        while _clearing:  # or this run might be handed the service that hangs
            _clearing.pop().join(CLEARING)
        # wandb would quietly turn to the system's temporary directory.
        shared = Path(self._run["dir"], "wandb")
        shared.mkdir(parents=True, exist_ok=True)
        if not os.access(shared, os.W_OK):
            raise PermissionError(f"cannot write to {shared}")

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT,
            finish_timeout=UPLOAD_TIMEOUT,
            # What the machine is stands in run.json already; asking again takes three quarters of a start.
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
        )
        # Not wandb's default, which hands every later run of a process the first one.
        run = {**self._run, "settings": settings, "reinit": "create_new"}
        if self._mode == "online" and not _offline.is_set():
            try:
                if not wandb.login(prompt=False, verify=False):
                    raise LookupError("no API key; `wandb login` stores one")
                return wandb.init(mode="online", **run)
            except Exception as error:
                _offline.set()
                LOG.warning("wandb goes on offline, later to be synced: %s", _line(error))
        return wandb.init(mode="offline", **run)


def _by_step(
    rows: list[Mapping[str, Any]], edges: Sequence[float] | None, probe: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the columns of all layers together, a step at a time."""
    import wandb

    names = [f"p{percent:g}" for percent in probe.get("percentiles", (15, 50, 85))] + ["mean", "std"]
    for step, layers in groupby(rows, key=lambda row: row["step"]):
        columns: dict[str, Any] = {"step": step}
        for row in layers:
            values = [*row["percentiles"], row.get("mean"), row.get("std")]
            columns |= {f"activations/{row['layer']}/{n}": v for n, v in zip(names, values, strict=True)}
            if (gradient := row.get("gradient")) is not None:
                columns[f"gradients/{row['layer']}"] = gradient
            if (counts := row.get("histogram")) is not None:
                if edges is None:
                    span = probe["histogram"]
                    edges = np.linspace(span["low"], span["high"], len(counts) + 1).tolist()
                bins = np.asarray(counts), np.asarray(edges)
                columns[f"histograms/{row['layer']}"] = wandb.Histogram(np_histogram=bins)
        yield columns


def _bands(rows: list[Mapping[str, Any]], probe: Mapping[str, Any]) -> dict[str, Any]:
    """Return Fig. 1b, c as a chart: the percentiles of what a layer's nonlinearities receive, over steps."""
    import wandb

    layer = rows[-1]["layer"]
    chart = wandb.plot.line_series(
        xs=[row["step"] for row in rows],
        ys=[list(percentile) for percentile in zip(*(row["percentiles"] for row in rows), strict=True)],
        keys=[f"p{percent:g}" for percent in probe.get("percentiles", (15, 50, 85))],
        title=f"input of {layer}, percentiles",
        xname="step",
    )
    return {f"figures/{layer}": chart}


def _image(path: Path) -> wandb.Image | wandb.Html:
    import wandb

    if path.suffix == ".svg":
        return wandb.Html(path.read_text(), inject=False, data_is_not_path=True)
    return wandb.Image(str(path))


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _teardown() -> None:
    import wandb

    with contextlib.suppress(BaseException):
        wandb.teardown()

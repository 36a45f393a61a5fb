"""One run, from its configuration to its record on disk.

A run is complete (its ``run.json`` is there: skipped), partial (resumed to the bit), failed (tried again from its
checkpoint) or new. The same directory with another configuration is refused, naming what differs, and nothing in it is
touched. Of several replicas, rank 0 keeps the directory; the others do as it says.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import itertools
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from bn_replication import build, checkpoint, jobs, records, schedules
from bn_replication.data import load
from bn_replication.distributed import World, is_loss, joined
from bn_replication.errors import UNWRITABLE, UserError, no_room
from bn_replication.evaluate import one_crop
from bn_replication.inputs import Inputs
from bn_replication.ledger import digests_for_study
from bn_replication.loop import Meter, fit
from bn_replication.measures import Measures
from bn_replication.models import ACTIVATIONS
from bn_replication.probes import Probe, evenly, log_and_even
from bn_replication.provenance import environment
from bn_replication.schema import Config
from bn_replication.streams import generator
from bn_replication.tracking import tracker

STARTED = "started.json"  # identity of a run that has begun; its run.json takes its place


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``completed``, ``diverged``, ``failed`` or ``skipped``, and a line about it."""

    status: str
    message: str
    accuracy: float | None = None


class Interrupted(BaseException):
    """Asked to stop (Ctrl-C, SIGTERM, a closed terminal) and stopped, with a checkpoint saved."""


def run(cfg: Config, arm: str, report: Callable[..., None] = lambda *_: None) -> Outcome:
    """Carry out the run that ``cfg`` describes, or what is left of it.

    Args:
        cfg: validated configuration.
        arm: the run's place in its study, one path component.
        report: called with the steps done and the held-out accuracy as training goes on.

    Raises:
        UserError: what was asked cannot be done (a stale record, missing data, a full disk); nothing is lost.
        Interrupted: asked to stop; what was done is saved.
        Lost: another process of this run is gone; what was saved last is there.
        Exception: anything else (out of memory, a defect), recorded as ``failed`` with its reason first.
    """
    with joined(cfg.replicas, cfg.machine.device) as world:
        return _lead(cfg, arm, report, world) if world.rank == 0 else _follow(cfg, arm, report, world)


def _follow(cfg: Config, arm: str, report: Callable[..., None], world: World) -> Outcome:
    """Do this replica's part of the run that rank 0 leads, which alone reads and writes its directory."""
    lead = world.hear()
    if lead is None:
        return Outcome("skipped", "rank 0 has nothing to do")
    if lead != cfg.identity():
        raise UserError(
            f"rank {world.rank}: found another configuration here than rank 0 has, expected one run on all machines; "
            "mend configs/ and the command here or there"
        )
    return _Run(cfg, arm, Path(os.devnull), report, world).carry_out()


def _lead(cfg: Config, arm: str, report: Callable[..., None], world: World) -> Outcome:
    directory = records.run_directory(cfg.machine.results, cfg.scale.name, cfg.study, arm, cfg.seed)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            done = records.read_run_json(directory)
            if done is not None:
                _refuse_if_stale(directory / records.RUN, done["config"], cfg)
                if done["status"] != "failed":
                    world.hear(None)
                    return Outcome("skipped", f"already {done['status']}")
            build.device(cfg.machine.device, "machine.device")
            # Nobody else is at work here: what a kill left half-written goes, and so does a failure now tried again.
            records.remove_temporaries(directory)
            (directory / records.RUN).unlink(missing_ok=True)
            world.hear(cfg.identity())
            return _Run(cfg, arm, directory, report, world).carry_out()
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise no_room(directory, os.strerror(error.errno)) from error
        raise


class _Run:
    """The parts of one run and the files that it writes."""

    def __init__(self, cfg: Config, arm: str, directory: Path, report: Callable[..., None], world: World) -> None:
        self.cfg, self.arm, self.directory, self.report = cfg, arm, directory, report
        self.world, self.leads = world, world.rank == 0  # who leads reads and writes; the others have no directory
        torch.set_num_threads(cfg.machine.threads)
        self.rules = digests_for_study(cfg.study)
        # Now, not at the end: the files may be others by then, and the modules are those of now.
        self.environment = environment(cfg.machine.device, cfg.machine.threads)
        self.resumed: list[dict[str, Any]] = []  # where it went on in another environment, and what differed
        self.started, self.step = time.time(), 0
        self.seconds: Callable[[], float] = lambda: 0.0  # of training

    def carry_out(self) -> Outcome:
        try:
            self._prepare()
            return self._train()
        except Exception as error:
            refused = isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in UNWRITABLE)
            if not (refused or is_loss(error)):
                self._record("failed", _reason(error), self.step, {})
            raise

    def _prepare(self) -> None:
        cfg = self.cfg
        # Arguments first: a wrong one is refused before any data is read.
        construct = build.network(cfg)
        data = cfg.data
        whole = (data.size, data.images)
        self.split = load(data.name, data.root, data.split, data.subset, data.source, cfg.machine.device, *whole)
        self.inputs = Inputs(cfg, self.split, self.world.rank)
        train, example = self.split.train, self.inputs.held_out(0, 2)[0]
        self.model: nn.Module = construct(train.shape, train.classes, generator(cfg.seed, "initialise"), example)
        self.trained = self.world.replicate(self.model)
        self.optimizer = build.sgd(self.model, cfg.optimizer)
        self.meter = Meter()
        self.curve: dict[str, float] = {}
        self.best = 0.0
        self.evaluated = evenly(cfg.steps, cfg.evaluate.times)
        probes = cfg.probe.enabled and self.leads
        self.probed = set(log_and_even(cfg.steps, cfg.probe.points)) if probes else set()
        self.saved = set(range(cfg.machine.checkpoint_every, cfg.steps, cfg.machine.checkpoint_every))
        self.probe = self._make_probe() if cfg.probe.enabled else None
        self.measures = Measures(cfg, self.model, self.split, self.inputs, self.probe.inputs if self.probe else None)

    # --- the run ------------------------------------------------------------------------------------------

    def _train(self) -> Outcome:
        cfg, state = self.cfg, self._resume()
        self.step, before = (state["step"], state["seconds"]) if state else (0, 0.0)
        clock = time.monotonic()  # the other clock may be set back
        self.seconds = lambda: before + time.monotonic() - clock
        with contextlib.ExitStack() as stack:
            self.curves = stack.enter_context(self._rows(records.CURVES, state))
            self.activations = stack.enter_context(self._rows(records.ACTIVATIONS, state))
            self.log = stack.enter_context(
                tracker(
                    mode=cfg.wandb.mode if self.leads else "disabled",
                    project=cfg.wandb.project,
                    entity=cfg.wandb.entity,
                    directory=cfg.wandb.directory,
                    study=cfg.study,
                    arm=self.arm,
                    seed=cfg.seed,
                    tags=[cfg.data.name, cfg.scale.name],
                    config=cfg.model_dump(mode="json", by_alias=True),
                )
            )
            stack.enter_context(_signals(self._stop))
            stack.callback(self.inputs.close)
            if state is None:
                self._on_step(0)
            elif self.leads:  # a resumed run is a new one to the tracker: it gets what the interrupted one had
                self._replay()
            diverged = fit(
                self.trained,
                self.optimizer,
                self.inputs.training,
                self._rate,
                start=self.step,
                steps=cfg.steps,
                seed=cfg.seed,
                meter=self.meter,
                on_step=self._on_step,
                precision=build.precision(cfg),
                record=cfg.machine.cuda_graph,
                world=self.world,
            )
            self.world.average(self.model)
            finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
            status = "completed" if diverged is None and finite else "diverged"
            summary = self._summary() if status == "completed" else {}
            summary |= {f"best_{self.accuracy_key}": self.best}
            self.log.finish(summary, status)
        steps_done = cfg.steps if diverged is None else diverged
        reason = None if status == "completed" else f"loss or weights ceased to be finite at step {steps_done}"
        self._record(status, reason, steps_done, summary)
        if self.leads:
            checkpoint.discard(self.directory)
            (self.directory / STARTED).unlink(missing_ok=True)
        final = summary.get(self.accuracy_key)
        return Outcome(status, reason or f"{self.accuracy_key} {final:.4f}", final)

    def _record(self, status: str, reason: str | None, steps_done: int, summary: dict[str, float]) -> None:
        if not self.leads:
            return
        cfg = self.cfg
        files = [name for name in (records.CURVES, records.ACTIVATIONS) if (self.directory / name).exists()]
        ended: dict[str, Any] = {} if status == "failed" else {"weights": _digest(self.model, self.optimizer)}
        if status == "completed" and cfg.evaluate.keep is not None:
            kept = checkpoint.keep(self.directory / checkpoint.WEIGHTS, self.model.state_dict())
            ended["kept"] = {checkpoint.WEIGHTS: kept}  # not among `files`, which are published
        records.write_run_json(
            self.directory,
            {
                "study": cfg.study,
                "arm": self.arm,
                "seed": cfg.seed,
                "scale": cfg.scale.name,
                "status": status,
                "reason": reason,
                "steps_done": steps_done,
                "summary": summary,
                "config": cfg.identity(),
                "choices": cfg.choices,
                "rules": self.rules,
                "files": {name: records.digest(self.directory / name) for name in files},
                "environment": self.environment | ({"resumed": self.resumed} if self.resumed else {}),
                "started": datetime.datetime.fromtimestamp(self.started, datetime.UTC).isoformat(timespec="seconds"),
                "seconds": round(self.seconds(), 2),
                **ended,
            },
        )

    def _rows(self, name: str, state: dict[str, Any] | None) -> contextlib.AbstractContextManager[TextIO]:
        return _appending(self.directory / name, state) if self.leads else open(os.devnull, "w")

    def _rate(self, step: int) -> float:
        cfg = self.cfg
        decay = schedules.exponential(step / cfg.steps, cfg.schedule.total, cfg.schedule.speed)
        return cfg.optimizer.rate * cfg.optimizer.multiple * decay

    @property
    def accuracy_key(self) -> str:
        return f"{self.split.held_out_name}_accuracy"

    # --- what happens at certain steps --------------------------------------------------------------------

    def _on_step(self, step: int) -> None:
        self.step = step
        if step:
            self.measures.after_step()
        if step in self.evaluated:
            self._write_row(step)
        if step in self.probed:
            self._write_activations(step)
        self.report(step, self.curve.get(self.accuracy_key))
        stopping = self.world.stopping
        if step in self.saved or stopping:
            self._save(step)
        if stopping:
            raise Interrupted

    def _stop(self, *_: object) -> None:
        # A plain flag: a second signal that comes while this one is answered would wait for an Event's lock for ever.
        self.world.asked = True

    def _evaluate(self, examples: int) -> dict[str, float]:
        count = min(examples or len(self.split.held_out), len(self.split.held_out))
        share = self.world.share(count)

        def inputs(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.inputs.held_out(share.start + start, share.start + stop)

        own = one_crop(self.model, inputs, len(share), self.cfg.evaluate.batch_size)
        result = self.world.mean(own, len(share))
        return {f"{self.split.held_out_name}_{key}": _round(value) for key, value in result.items()}

    def _write_row(self, step: int) -> None:
        trained = {key: _round(value) for key, value in self.meter.row().items()}
        epoch = step * self.cfg.replicas * self.cfg.batch_size / len(self.split.train)
        with self.world.averaged(self.model):
            held_out = self._evaluate(self.cfg.evaluate.examples)
            trained |= {key: _round(value) for key, value in self.measures.columns(self._rate(step)).items()}
        self.curve = {"step": step, "epoch": _round(epoch), "rate": _round(self._rate(step)), **trained, **held_out}
        self.best = max(self.best, held_out[self.accuracy_key])
        self.curves.write(records.json_line(self.curve))
        self.log.curve(self.curve)

    def _write_activations(self, step: int) -> None:
        assert self.probe is not None
        besides = self.measures.of_layers()
        rows = [{"step": step, **row, **besides.get(row["layer"], {})} for row in self.probe.measure()]
        self.activations.write("".join(map(records.json_line, rows)))
        self.log.activations(rows)

    def _summary(self) -> dict[str, float]:
        """The last row, the same two numbers over every held-out image, and what else is to be measured."""
        last = {key: value for key, value in self.curve.items() if key.startswith(("train_", "fit_"))}
        measured = self.measures.summary() if self.leads else {}
        return last | self._evaluate(0) | {key: _round(value) for key, value in measured.items()}

    def _make_probe(self) -> Probe:
        cfg = self.cfg.probe
        indices = torch.arange(min(cfg.examples, len(self.split.train)), device=self.split.train.device)
        return Probe(
            self.model,
            self.inputs.plain(self.split.train, indices),
            tuple(ACTIVATIONS.values()),
            cfg.percentiles,
            cfg.histogram.low,
            cfg.histogram.high,
            cfg.histogram.bins,
            cfg.units_of,
        )

    def _replay(self) -> None:
        for row in records.read_rows(self.directory / records.CURVES):
            self.log.curve(row)
        by_step = itertools.groupby(records.read_rows(self.directory / records.ACTIVATIONS), lambda row: row["step"])
        for _, rows in by_step:
            self.log.activations(list(rows))

    # --- checkpoints --------------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        replicas = self.world.collect({name: buffer.cpu() for name, buffer in self.model.named_buffers()})
        if not self.leads:
            return
        for file in (self.curves, self.activations):
            file.flush()
            os.fsync(file.fileno())
        state = {
            "step": step,
            "seconds": self.seconds(),
            "model": self.model.state_dict(),
            "replicas": replicas,  # their buffers; all else is the same on each of them
            "optimizer": self.optimizer.state_dict(),
            "meter": vars(self.meter),
            "curve": self.curve,
            "best": self.best,
            "measures": self.measures.state(),
            "environment": self.environment,
            "resumed": self.resumed,
            "rules": self.rules,
            "started": self.started,
            "offsets": {records.CURVES: self.curves.tell(), records.ACTIVATIONS: self.activations.tell()},
        }
        checkpoint.save(self.directory, state)

    def _resume(self) -> dict[str, Any] | None:
        """Go on from what a run that was cut off has saved, if it has."""
        state = self.world.hear(self._saved() if self.leads else None)
        if state is not None:
            if state["step"] > 0:
                self.world.rehearse(self.trained, self.inputs.training(0)[0])
            self.model.load_state_dict(state["model"])
            if self.world.size > 1:
                self.model.load_state_dict(state["replicas"][self.world.rank], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            vars(self.meter).update(state["meter"])
            self.curve, self.best = state["curve"], state["best"]
            # Those of its start: a rule that was changed while it stood still was changed after the run began.
            self.rules = state.get("rules", self.rules)
            self.started = state.get("started", self.started)
            self.measures.load_state(state.get("measures", {}))
        return state

    def _saved(self) -> dict[str, Any] | None:
        """Load the checkpoint of a run that was cut off, or mark a new one as started."""
        marker = self.directory / STARTED
        begun = None
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            begun = json.loads(marker.read_bytes())
        if isinstance(begun, dict):
            _refuse_if_stale(marker, begun, self.cfg)
            state = checkpoint.load(self.directory, self.cfg.machine.device if self.world.size == 1 else "cpu")
            if state is not None:
                self._compare(state)
                return state
        elif any((self.directory / name).exists() for name in (checkpoint.CURRENT, checkpoint.PREVIOUS)):
            # Of which run, nobody can tell: not ours to go on with, nor to throw away.
            raise UserError(
                f"{marker}: found no configuration beside a checkpoint, expected that of the run which began here; "
                "put the file back or remove its directory to start again"
            )
        records.atomic_write(marker, json.dumps(self.cfg.identity(), indent=1).encode())
        checkpoint.discard(self.directory)
        return None

    def _compare(self, state: dict[str, Any]) -> None:
        """Hold a checkpoint against what goes on from it: its files, and the environment that it was made in."""
        for name, offset in state["offsets"].items():
            path = self.directory / name
            found = path.stat().st_size if path.exists() else 0
            if found < offset:
                raise UserError(
                    f"{path}: found {found} bytes, expected the {offset} written before the checkpoint; "
                    "put the file back or remove its directory to start again"
                )
        there, here = state.get("environment", {}), self.environment
        changed = {key: [there[key], here[key]] for key in there if there[key] != here.get(key)}
        shown = ", ".join(f"{key}: {old} there, {new} here" for key, (old, new) in changed.items())
        if "torch" in changed and not self.cfg.machine.resume_anyway:
            # Another version may round otherwise: neither its own curve nor that of a run left alone.
            raise UserError(
                f"{self.directory}: found a run begun in another environment ({shown}), expected the same torch; "
                "set machine.resume_anyway=true to go on and have it recorded, or remove its directory"
            )
        self.resumed = state.get("resumed", [])
        if changed:
            warnings.warn(f"{self.directory}: goes on in another environment ({shown}); recorded", stacklevel=2)
            self.resumed = [*self.resumed, {"step": state["step"], **changed}]


def _round(value: float) -> float:
    """Eight significant digits: all that a float32 holds, in half the bytes of a float64's."""
    return float(f"{value:.8g}")


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # Of the CPU's allocator torch says so only in words.
    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    return f"out of memory ({text})" if full or getattr(error, "errno", 0) == errno.ENOMEM else text


def _digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return the SHA-256 of all that training has made: weights, running statistics, momenta."""
    tensors: dict[str, torch.Tensor] = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        kept = optimizer.state.get(parameter, {})
        tensors |= {f"{name}/{key}": value for key, value in kept.items() if isinstance(value, torch.Tensor)}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- the run's directory -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for one process; the kernel lets go of it when the holder dies, however it dies."""
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory}: found another process at work on this run, expected none; "
                "wait for it, or use another seed or study"
            ) from None
        yield


@contextlib.contextmanager
def _appending(path: Path, state: dict[str, Any] | None) -> Iterator[TextIO]:
    """Open ``path`` for rows after the checkpoint's: what was written later is written again."""
    # By lines, so that a reader (or a killed run) sees whole rows as they come.
    with open(path, "r+" if path.exists() else "w+", buffering=1) as file:
        file.truncate(state["offsets"][path.name] if state else 0)
        file.seek(0, os.SEEK_END)
        yield file
        file.flush()
        os.fsync(file.fileno())  # before a record signs it


def _refuse_if_stale(path: Path, found: dict[str, Any], cfg: Config) -> None:
    alone = {"replicas": 1}  # which identities leave out
    there, here = alone | records.flatten(found), alone | records.flatten(cfg.identity())
    changed = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if changed:
        shown = "; ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        # Its examples are dealt, and its gradients averaged, over so many processes.
        others = f"go on with torchrun --nproc-per-node={there['replicas']}, "
        ways = others if there["replicas"] != here["replicas"] else ""
        raise UserError(
            f"{path}: found a run of another configuration ({shown}), expected this one; "
            f"{ways}remove its directory or name another study=..."
        )


@contextlib.contextmanager
def _signals(stop: Callable[..., None]) -> Iterator[None]:
    """Turn what asks a program to stop into a stop at the end of the step in hand.

    Where someone answers SIGUSR2, a scheduler gives its warnings by it: submitit under Slurm, before it preempts a job
    or the time is up. It then means stop, and is passed on once the run is saved, so that the job is queued again;
    SIGTERM stays submitit's, which lets a job train on until it is ended in earnest.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    warned = False

    def warn(*_: object) -> None:
        nonlocal warned
        warned = True
        stop()

    scheduled = callable(signal.getsignal(signal.SIGUSR2))
    answers = {number: stop for number in jobs.asking() if not (scheduled and number == signal.SIGTERM)}
    answers |= {signal.SIGUSR2: warn} if scheduled else {}
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if warned:
            signal.raise_signal(signal.SIGUSR2)

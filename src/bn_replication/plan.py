"""What a scale's studies would take, before any is launched: ``python -m bn_replication.plan [STUDY ...]``.

Runs are counted as ``status`` counts them and composed through Hydra as a sweep composes them. Every different net
among them is built and trained for some steps on random images of its data set's shape, one thread a net and all cores
busy, as a sweep would have them: *hours* are those medians times the steps, plus the evaluations. For other
machines there is nothing but arithmetic on the assumptions printed with it. FLOPs are of training: forward and
backward take three times the multiply-adds of the convolutions and products, two operations each; norms, activations
and pools are not counted. Nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from bn_replication import build, records, status
from bn_replication.data import Images, Split, imagenet
from bn_replication.data.images import VALIDATION
from bn_replication.data.samples import SIZES
from bn_replication.data.sources import DATASETS
from bn_replication.data.whiten import PrincipalAxes
from bn_replication.errors import UserError, nearest, one_line
from bn_replication.evaluate import one_crop
from bn_replication.inputs import Inputs
from bn_replication.jobs import cores
from bn_replication.ledger import swept
from bn_replication.loop import Meter, fit
from bn_replication.models import ACTIVATIONS, architecture
from bn_replication.models.mlp import MLP
from bn_replication.probes import Probe, evenly, log_and_even
from bn_replication.provenance import environment
from bn_replication.schema import Component, Config, validate
from bn_replication.streams import generator
from bn_replication.train import CONFIGS, resolved
from bn_replication.workers import pool

# Axes that change what an update is worth and not what it takes: one composition serves all their values.
IDLE = ("optimizer", "schedule")
WARM_UP, LEAST, BUDGET = 2, 4, 0.2  # steps before the clock counts; then so many, and until so many seconds are full
EXAMPLES = 16  # images that the probe of activations is tried on
STEP_FLOPS, CROP_FLOPS = 50e9, 1e9  # a slower batch is probed with fewer images: the smallest of the paper's net here
BUSY = 0.9  # share of a core below which a probe was disturbed
MIRROR = 4  # of W&B's offline files, in records: 2.1 MB beside 0.5 MB on the laptop
IMAGENET_BYTES = 150e9  # 1.28 million JPEG files as published: 138 GB, and 7 GB of validation


class Shape(NamedTuple):
    """A data set as a plan sees it."""

    image: tuple[int, int, int]  # (C, H, W)
    train: int
    test: int
    classes: int
    size: float  # bytes on disk


class Machine(NamedTuple):
    """A machine that was not measured: what it is assumed to sustain, and why."""

    name: str
    flops: float  # a second, on these nets
    launch: float  # seconds a layer and step that no arithmetic hides
    reason: str


# Assumptions, each to within a factor of two or three: no run of this suite at 224 px has been timed on any of them.
MACHINES = (
    Machine("H100 or H200", 30e12, 60e-6, "a third of 8,000 images/s at 224 px, hoped for in bfloat16 at batch 512"),
    Machine("A100", 15e12, 60e-6, "half of that, as its memory is half as fast, and memory is what binds"),
    Machine("T4", 2.5e12, 80e-6, "a third of its float32 peak"),
)


class Net(NamedTuple):
    """What the probe found of one net."""

    multiply_adds: int  # an image, forward
    layers: int
    parameters: int
    checkpoint: int  # bytes of weights, buffers and momenta
    row: float  # bytes of records a probe of activations takes
    step: float  # seconds an image of a training step takes, the median
    crop: float  # seconds an evaluated image takes
    spread: float  # of the timed steps: half of what their middle half spans, over the median
    timed: int  # steps
    images: int  # in a timed step
    share: float  # of a core that the timed steps had: below 1, others were at work too


@dataclass(frozen=True)
class Run:
    """What one run asks of a machine; ``net`` says which of the measured ones."""

    steps: int
    batch_size: int  # of all replicas
    evaluated: int  # images, forward only
    rows: int  # of the learning curve
    probes: int  # of activations
    data: str
    net: str
    keeps: bool = False  # its final weights

    @property
    def images(self) -> int:
        return self.steps * self.batch_size

    def flops(self, net: Net) -> float:
        """Floating-point operations of training, evaluations left out."""
        return 6.0 * net.multiply_adds * self.images

    def seconds_here(self, net: Net) -> float:
        return self.images * net.step + self.evaluated * net.crop

    def seconds_on(self, machine: Machine, net: Net) -> float:
        """Seconds on a machine that computes at its rate, or as fast as it launches layers where that is slower."""
        train = max(self.flops(net) / machine.flops, self.steps * net.layers * machine.launch)
        return train + 2.0 * net.multiply_adds * self.evaluated / machine.flops

    def record_bytes(self, net: Net) -> float:
        kept = net.checkpoint / 2 if self.keeps else 0
        return 3000 + 130 * self.rows + self.probes * net.row + kept


@dataclass(frozen=True)
class Study:
    """One study's runs, and which of them have ended."""

    name: str
    runs: list[Run]
    ended: list[bool]

    def total(self, of: Callable[[Run], float], left: bool = False) -> float:
        return sum(of(run) for run, ended in zip(self.runs, self.ended, strict=True) if not (left and ended))


# --- what would run -----------------------------------------------------------------------------------------


def shape_of(data: str, image_size: int) -> Shape:
    """Return the shape of a data set, or a :class:`UserError`: nothing is loaded."""
    square = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    kind = data.removesuffix("_sample")
    if data in imagenet.NAMES:
        return Shape((3, image_size, image_size), 1_281_167, 50_000, 1000, IMAGENET_BYTES)
    if kind not in square:
        raise UserError(f"found data set '{data}', expected {', '.join(square)} or imagenet{nearest(kind, square)}")
    if kind != data:
        train, test, _ = SIZES[kind]
        return Shape(square[kind], 10 * train, 10 * test, 10, 0)
    train = 50_000 if kind == "cifar10" else 60_000
    return Shape(square[kind], train, 10_000, 10, sum(file.size for file in DATASETS[kind].files))


def run_of(cfg: Config) -> Run:
    """Return what the run that ``cfg`` describes takes, going by what ``runner`` does at which steps."""
    shape, data = shape_of(cfg.data.name, cfg.scale.image_size), cfg.data
    train, held_out = shape.train, shape.test
    if data.split == "tune":
        held_out = VALIDATION[data.name]
        train -= held_out
    train, held_out = min(data.subset or train, train), min(data.subset or held_out, held_out)
    rows = len(evenly(cfg.steps, cfg.evaluate.times))
    judged = min(cfg.evaluate.examples or held_out, held_out)
    fitted = min(cfg.evaluate.examples or held_out, train) if cfg.measure.fit else 0
    probes = len(log_and_even(cfg.steps, cfg.probe.points)) if cfg.probe.enabled else 0
    evaluated = rows * (judged + fitted) + held_out
    batch, net = cfg.batch_size * cfg.replicas, json.dumps(essence(cfg), sort_keys=True)
    return Run(cfg.steps, batch, evaluated, rows, probes, data.name, net, cfg.evaluate.keep is not None)


def essence(cfg: Config) -> dict[str, Any]:
    """Return a configuration with all that a step's time does not depend on set alike, so that nets are told apart."""
    tree = cfg.model_dump(mode="json", by_alias=True)
    alike = {key: value for key, value in tree["model"].items() if not key.startswith(("init", "dropout"))}
    # Half the distortion is as much work, and whitened inputs take the same product as decorrelated ones.
    augment = {key: bool(value) for key, value in tree["augment"].items() if key != "name"}
    if not cfg.augment.changes_anything:
        augment = {}
    turned = "decorrelated" if tree["data"]["input"] == "whitened" else tree["data"]["input"]
    return {
        "model": alike | ({"dropout": tree["model"]["dropout"] > 0} if "dropout" in tree["model"] else {}),
        "augment": augment,
        "data": [tree["data"]["name"], turned],
        "image_size": cfg.scale.image_size,
        **{key: tree[key] for key in ("norm", "last_norm", "batch_size", "precision", "probe")},
    }


def compose_study(
    study: str, scale: str, device: str, root: Path, seeds: int | None = None, steps: int | None = None
) -> tuple[Study, dict[str, Config]]:
    """Return a study's runs, and a configuration for each net among them; seeds and steps as for ``status.jobs``."""
    composed: dict[tuple[str, ...], Config] = {}
    runs, ended, nets = [], [], {}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for job in status.jobs(study, scale, seeds, steps):
            axes = {key: value for key, value in job.overrides if key.partition(".")[0] not in IDLE}
            words = tuple(f"{key}={'null' if value is None else value}" for key, value in axes.items())
            if words not in composed:
                fixed = [f"experiment={study}", f"scale={scale}", f"machine.device={device}"]
                found = compose("train", [*fixed, *words])
                # What a run takes does not hang on its rate, which a sweep may have yet to choose.
                found.tuned, found.optimizer.rate = {}, 1.0
                tree = resolved(found)
                if device == "cpu":
                    tree["precision"] = "float32"  # the probe's, where the scale asks for a GPU's
                composed[words] = validate(tree)
            cfg = composed[words]
            run = run_of(cfg)
            runs.append(run)
            nets.setdefault(run.net, cfg)
            record = records.read_run_json(job.directory(root, scale))
            ended.append(record is not None and record["status"] != "failed")
    return Study(study, runs, ended), nets


# --- what it takes ------------------------------------------------------------------------------------------


class _Random(Split):
    """Random images in a data set's shape, whose principal axes are taken as given: to find them takes a minute."""

    @property
    def principal_axes(self) -> PrincipalAxes:  # pyright: ignore[reportIncompatibleVariableOverride]
        values = math.prod(self.train.shape)
        return PrincipalAxes(*(make.double() for make in (torch.zeros(values), torch.ones(values), torch.eye(values))))


@cache
def multiply_adds(model: str, shape: Shape) -> tuple[int, int]:
    """Return the multiply-adds of a net for one image, forward, norms left out, and its number of layers.

    Args:
        model: the configuration's ``model``, as JSON.
    """
    with torch.device("meta"):
        network = build.model(Component(**json.loads(model)), nn.Identity)(
            shape.image, shape.classes, torch.Generator()
        )
        layers = [module for module in network.modules() if not list(module.children())]
        if isinstance(network, MLP):
            work = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
        else:
            work = architecture.multiply_adds(network, torch.empty(1, *shape.image))
    return work, len(layers)


def measure(cfg: Config) -> Net:
    """Build the net of ``cfg`` and time training steps and evaluations of it on random images, with one thread."""
    torch.set_num_threads(1)
    shape, device = shape_of(cfg.data.name, cfg.scale.image_size), cfg.machine.device
    work, layers = multiply_adds(cfg.model.model_dump_json(by_alias=True), shape)
    # Never fewer than two images, of which a batch norm could make nothing.
    batch = max(2, min(cfg.batch_size, int(STEP_FLOPS / (6 * work))))
    crops = max(2, min(cfg.evaluate.batch_size, int(CROP_FLOPS / (2 * work))))
    draws = generator(0, "plan")
    count = max(4 * batch, crops, EXAMPLES)
    pixels = torch.randint(0, 256, (count, *shape.image), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, shape.classes, (len(pixels),), generator=draws)
    images = Images(pixels.to(device), labels.to(device), shape.classes)
    tree = cfg.model_dump(mode="json", by_alias=True)
    tree["batch_size"], tree["data"]["shards"] = batch, 1
    if tree["data"]["input"] == "whitened":
        tree["data"]["input"] = "decorrelated"  # as much work a batch
    small = validate(tree)
    inputs = Inputs(small, _Random(images, images, "test"))
    network = build.network(cfg)(shape.image, shape.classes, draws, inputs.held_out(0, 2)[0])
    optimizer = build.sgd(network, cfg.optimizer)
    train = partial(
        fit,
        network,
        optimizer,
        inputs.training,
        lambda _: 1e-6,  # at which no net leaves the finite numbers
        seed=0,
        meter=Meter(),
        on_step=lambda _: None,
        precision=build.precision(cfg),
    )
    network.train()
    cpu, clock = time.process_time(), time.perf_counter()
    steps = _timed(lambda step: train(start=step, steps=step + 1), WARM_UP, BUDGET)
    share = (time.process_time() - cpu) / (time.perf_counter() - clock)
    judged = _timed(lambda _: one_crop(network, inputs.held_out, crops, crops), 1, 0)
    parameters, buffers = (sum(t.numel() for t in own()) for own in (network.parameters, network.buffers))
    low, median, high = statistics.quantiles(steps, n=4, method="inclusive")
    return Net(
        multiply_adds=work,
        layers=layers,
        parameters=parameters,
        checkpoint=4 * (2 * parameters + buffers),
        row=_row_bytes(cfg, network, inputs.held_out(0, EXAMPLES)[0]) if cfg.probe.enabled else 0.0,
        step=median / batch,
        crop=statistics.median(judged) / crops,
        spread=(high - low) / 2 / median,
        timed=len(steps),
        images=batch,
        share=share,
    )


def _timed(action: Callable[[int], object], warm_up: int, budget: float) -> list[float]:
    """Return the seconds each call of ``action`` took: those after ``warm_up``, ``LEAST`` or what ``budget`` holds."""
    taken: list[float] = []
    for turn in itertools.count():
        start = time.perf_counter()
        action(turn)
        taken.append(time.perf_counter() - start)
        counted = taken[warm_up:]
        if len(counted) >= LEAST and sum(counted) >= budget:
            return counted
    raise AssertionError


def _row_bytes(cfg: Config, network: nn.Module, images: Tensor) -> float:
    """Return the bytes of a probe's rows: one a layer, written as a run writes them."""
    probe, marks = cfg.probe, cfg.probe.histogram
    kinds = tuple(ACTIVATIONS.values())
    watch = Probe(network, images, kinds, probe.percentiles, marks.low, marks.high, marks.bins, probe.units_of)
    return float(sum(len(records.json_line({"step": cfg.steps, **row})) for row in watch.measure()))


def plan(
    studies: Sequence[str],
    scale: str,
    root: Path,
    device: str = "cpu",
    workers: int = 1,
    seeds: int | None = None,
    steps: int | None = None,
) -> tuple[list[Study], dict[str, Net]]:
    """Return the studies' runs and what the probe found of each net among them; seeds, steps: as for ``status.jobs``.

    Args:
        workers: processes that compose and measure side by side; with 1, this process does.
        root: where records of runs that have ended are looked for.
    """
    composed = partial(compose_study, scale=scale, device=device, root=root, seeds=seeds, steps=steps)
    if workers == 1:
        return _plan(map, studies, composed)
    with pool(workers, "`taskset -c 0` before the command gives it one core, and so one process") as probes:
        return _plan(probes.map, studies, composed)


def _plan(
    each: Callable[..., Iterable[Any]], studies: Sequence[str], composed: Callable[[str], Any]
) -> tuple[list[Study], dict[str, Net]]:
    found: list[Study] = []
    nets: dict[str, Config] = {}
    for study, own in each(composed, studies):
        found.append(study)
        nets = own | nets
    return found, dict(zip(nets, each(measure, nets.values()), strict=True))


def sweeps(asked: Sequence[str]) -> list[str]:
    """Return the studies that train, or those of ``asked``; what numerics alone decide takes no training."""
    every = swept()
    for name in asked:
        if name not in every:
            raise UserError(f"found study '{name}', expected one of configs/experiment/{nearest(name, every)}")
    return list(asked) or every


# --- what is printed ----------------------------------------------------------------------------------------


def hours(seconds: float) -> str:
    """Return seconds in hours to three digits, whole from a hundred on."""
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def size(number: float) -> str:
    """Return bytes to three digits in their unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.0f} TB" if number >= 99.5 else f"{number:.3g} TB"


def big(number: float) -> str:
    """Return a count, whole below a million and as 1.23e6 from there on."""
    return f"{number:,.0f}" if number < 1e6 else f"{number:.2e}".replace("e+0", "e").replace("e+", "e")


def side_by_side(seconds: Sequence[float], places: int) -> float:
    """Return the time that runs take, so many at a time: at least the longest one's."""
    return max(sum(seconds) / places, max(seconds, default=0.0))


def show(
    studies: Sequence[Study],
    nets: dict[str, Net],
    scale: str,
    *,
    places: int,
    here: str,
    took: float,
    here_is_cpu: bool = True,
    price: float | None = None,
    machines: Sequence[Machine] = MACHINES,
    others: int = 1,
) -> None:
    """Print the plan: a line a study, what it rests on, a line a machine."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def net(run: Run) -> Net:
        return nets[run.net]

    def seconds(run: Run) -> float:
        return run.seconds_here(net(run))

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    def line(name: str, some: Sequence[Study]) -> list[str]:
        def total(of: Callable[[Run], float], left: bool = False) -> float:
            return sum(each.total(of, left) for each in some)

        runs, done = sum(len(each.runs) for each in some), sum(sum(each.ended) for each in some)
        whole = [seconds(run) for each in some for run in each.runs]
        left = [seconds(run) for each in some for run, ended in zip(each.runs, each.ended, strict=True) if not ended]
        return [
            name,
            f"{done:,}/{runs:,}",
            big(total(lambda run: run.steps)),
            big(total(lambda run: run.images)),
            big(total(lambda run: run.flops(net(run)))),
            hours(side_by_side(whole, places)),
            hours(side_by_side(left, places)),
            size(total(lambda run: (1 + MIRROR) * run.record_bytes(net(run)))),
        ]

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("study", overflow="fold")
    for heading in ("runs", "steps", "images", "FLOPs", "hours", "to go", "disk"):
        table.add_column(heading, justify="right", overflow="fold")
    for each in studies:
        table.add_row(*line(each.name, [each]))
    if len(studies) > 1:
        table.add_section()
        table.add_row(*line("all", studies), style="bold")
    console.print(table)

    runs = [run for each in studies for run in each.runs]
    used = [nets[name] for name in {run.net for run in runs}]
    here_seconds = [seconds(run) for run in runs]
    cost = "" if price is None else f", {sum(here_seconds) / places / 3600 * price:,.2f} at {price:g} an hour"
    say(f"\n{scale} scale, here: {here}, {places} side by side{cost}. Runs: those that have ended, and all.")
    spreads = sorted(each.spread for each in used)
    say(
        f"Measured: {len(used)} nets, {min(each.timed for each in used)} to {max(each.timed for each in used)} steps "
        f"each after {WARM_UP} of warm-up, {took:.0f} s in all; the middle half of a net's steps within "
        f"{statistics.median(spreads):.0%} of their median, {spreads[-1]:.0%} at worst."
    )
    share = statistics.median(each.share for each in used)
    if here_is_cpu and share < BUSY:
        say(
            f"Others were at work: the probe had {share:.0%} of a core. Hours here are as things stand; of an idle "
            f"machine, expect about {hours(side_by_side([share * each for each in here_seconds], places))} in all."
        )
    if part := [each for name, each in nets.items() if each.images < json.loads(name)["batch_size"]]:
        say(
            f"{len(part)} of them were timed on {min(each.images for each in part)} images a step or more, fewer than "
            "their batch; hours go by the image."
        )
    say(
        "Left out: start-up, reading and decoding images, the covariance of whitened inputs (a minute a run on "
        "CIFAR-10), and what `measure` adds to a run."
    )
    data = {run.data: shape_of(run.data, json.loads(run.net)["image_size"]) for run in runs}
    kept = 2 * max(each.checkpoint for each in used) * places
    say(
        f"Disk: records and, about {MIRROR} times as much, W&B's mirror of them; besides, checkpoints of up to "
        f"{size(kept)} while runs are under way; data sets, once: "
        + ", ".join(f"{name} {size(shape.size)}" for name, shape in sorted(data.items()))
        + "."
    )
    say(
        f"\nOther machines, {others} of each side by side, one run on one: assumed, not measured; right to a factor of "
        "two or three at best."
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("machine", "TFLOP/s", "hours", "longest run", "machine-hours", *(["cost"] if price else [])):
        table.add_column(heading, justify="left" if heading == "machine" else "right", no_wrap=True)
    for machine in machines:
        each = [run.seconds_on(machine, net(run)) for run in runs]
        row = [machine.name, f"{machine.flops / 1e12:.3g}", hours(side_by_side(each, others)), hours(max(each))]
        table.add_row(*row, hours(sum(each)), *([f"{sum(each) / 3600 * price:,.2f}"] if price else []))
    console.print(table)
    for machine in machines:
        launch = f", and at least {machine.launch * 1e6:.0f} us a layer and step" if machine.launch else ""
        say(f"{machine.name}, {machine.flops / 1e12:.3g} TFLOP/s sustained: {machine.reason}{launch}.")


def _number(key: str, text: str | None, least: float = 0.0, whole: bool = False) -> float | None:
    """Return the number that ``text`` spells, ``None`` for none, or raise a :class:`UserError` that names ``key``."""
    if not text:
        return None
    kind = "a whole number" if whole else "a number"
    with_limit = f"{kind}, {least:g} or more" if whole else f"{kind} above {least:g}"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least or (not whole and value == least):
        raise UserError(f"{key}: found '{text}', expected {with_limit}")
    return value


@one_line("error: ")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan and return the exit code: 2 for what cannot be planned."""
    parser = argparse.ArgumentParser(prog="python -m bn_replication.plan", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="default: every study that trains")
    parser.add_argument("--scale", default="laptop", help="default: %(default)s")
    parser.add_argument("--seeds", help="so many of each arm, from 0 on; default: the scale's")
    parser.add_argument("--steps", help="of each run; default: the study's")
    parser.add_argument("--price", help="of an hour of one machine; adds what it would cost")
    parser.add_argument("--gpus", help="so many of each other machine side by side; default: 1")
    parser.add_argument("--tflops", help="a machine of yours: what it sustains, in 1e12 operations a second")
    parser.add_argument("--device", default="cpu", help="where the probe trains, cpu or cuda; default: %(default)s")
    parser.add_argument("--root", type=Path, default=Path("results/runs"), help="your runs; default: %(default)s")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    asked: dict[str, int] = {}
    for key in ("seeds", "steps"):
        if (number := _number(key.upper(), getattr(options, key), 1, whole=True)) is not None:
            asked[key] = int(number)
    price = _number("PRICE", options.price)
    others = int(_number("GPUS", options.gpus, 1, whole=True) or 1)
    tflops = _number("TFLOPS", options.tflops)
    names = sweeps(options.studies)
    status.jobs(names[0], options.scale)  # a scale that there is none of is told at once
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        raise UserError(f"--device: found '{options.device}', expected cpu or cuda")
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UserError(f"--device: found '{options.device}', expected cpu: torch sees no GPU here")
    places = 1 if cuda else cores()
    clock = time.perf_counter()
    try:
        # A GPU is timed by one process, which has it to itself.
        studies, nets = plan(names, options.scale, options.root, options.device, places, **asked)
    except KeyboardInterrupt:
        return 130
    known = environment(options.device, 1)
    mine = [Machine("yours", tflops * 1e12, 0.0, "you said so")] if tflops else []
    show(
        studies,
        nets,
        options.scale,
        places=places,
        here=known["device"] if cuda else f"{known['cpu']}, one thread a run",
        took=time.perf_counter() - clock,
        here_is_cpu=not cuda,
        price=price,
        machines=[*MACHINES, *mine],
        others=others,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

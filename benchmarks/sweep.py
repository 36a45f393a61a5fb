"""How a sweep of the laptop-scale Inception uses two cores, and how much of a step is not the network's own work.

- Sweep: two whole runs side by side, one thread each, as the launcher does, against the same two runs one after the
  other in one process with two threads.
- Step: our loop (batch, distortion, rate, loss, bookkeeping) against forward, backward and optimiser alone on batches
  that lie ready, in turns.

``python benchmarks/sweep.py [--steps 200] [--repeat 3] [--json FILE]`` (needs ``make data``)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed

from bn_replication import build, runner
from bn_replication.data import load
from bn_replication.inputs import Inputs
from bn_replication.loop import Meter, fit
from bn_replication.schema import Config, validate
from bn_replication.streams import generator
from bn_replication.train import CONFIGS, resolved

BLOCK = 5  # steps


def configuration(results: Path, *overrides: str) -> Config:
    fixed = ["experiment=fig2_inception", "variant=bn_x5", "wandb=disabled", "probe.enabled=false"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        tree = compose("train", overrides=[*fixed, f"machine.results={results}", *overrides])
    return validate(resolved(tree))


def run(cfg: Config) -> None:
    assert runner.run(cfg, f"threads={cfg.machine.threads}").status == "completed"


def sweep(steps: int, repeat: int, scratch: Path) -> list[float]:
    """Return how many times faster two one-thread runs side by side are, a value a repetition."""
    workers = Parallel(n_jobs=2)
    fixed = (f"steps={steps}", "evaluate.times=1", "evaluate.examples=500")

    def together(name: str) -> float:
        began = time.perf_counter()
        workers(delayed(run)(configuration(scratch / name, *fixed, f"seed={seed}")) for seed in (0, 1))
        return time.perf_counter() - began

    def in_turn(name: str) -> float:
        began = time.perf_counter()
        for seed in (0, 1):
            run(configuration(scratch / name, *fixed, f"seed={seed}", "machine.threads=2"))
        return time.perf_counter() - began

    together("warm"), in_turn("warm")
    return [in_turn(f"a{k}") / together(f"b{k}") for k in range(repeat)]


def overhead(steps: int, repeat: int, scratch: Path) -> list[float]:
    """Return the share of a step that is not forward, backward or optimiser, a value a repetition.

    Of the processor's time of this one thread, in blocks of a few steps by turns, so that what slows a machine for a
    second slows both.
    """
    torch.set_num_threads(1)
    cfg = configuration(scratch / "step", f"steps={steps}")
    split = load(cfg.data.name, cfg.data.root)
    inputs = Inputs(cfg, split)
    network = build.model(cfg.model, build.norm(cfg.norm))((3, 32, 32), 10, generator(0, "initialise"))
    network = network.to(memory_format=torch.channels_last)
    optimizer = build.sgd(network, cfg.optimizer)
    ready = [inputs.training(step) for step in range(BLOCK)]

    def ours() -> float:
        began = time.process_time()
        rest = {"start": 0, "steps": BLOCK, "seed": 0, "meter": Meter(), "on_step": lambda _: None}
        fit(network, optimizer, inputs.training, lambda _: 1e-4, **rest)
        return time.process_time() - began

    def core() -> float:
        began = time.process_time()
        for images, labels in ready:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return time.process_time() - began

    ours(), core()
    return [1 - core() / ours() for _ in range(repeat * steps // BLOCK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="a run (default 200)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sweep.json"), help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        faster = sweep(options.steps, options.repeat, Path(scratch))
        share = overhead(options.steps, options.repeat, Path(scratch))
    rows = {
        "two one-thread runs side by side / in turn with two threads": (faster, "{:.2f}", ">= 1.8"),
        "share of a step outside forward, backward, optimiser": (share, "{:.2%}", "<= 3%"),
    }
    for name, (values, form, target) in rows.items():
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        # Of many repetitions the middle half, of few all.
        ends = (quartiles[0], quartiles[2]) if len(values) > 8 else (min(values), max(values))
        low, middle, high = map(form.format, (ends[0], statistics.median(values), ends[1]))
        print(f"{name:62} median {middle:>6}  [{low}, {high}]   target {target}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"sweep_ratio": faster, "overhead_share": share}
    options.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()

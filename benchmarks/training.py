"""How fast Figure 1's net trains: against the loop that most people would write, in one run of one program.

The peer is a training script's usual form: torchvision's MNIST with transforms, a shuffling ``DataLoader``, PyTorch's
own layers and SGD, eager, every thread torch takes, one run after another. A second peer is given the images as tensors
beforehand. Ours is what ``make fig1_mnist`` does: whole runs with their records, one thread each, on all cores.
Repetitions alternate, and ratios are of the pairs, so that a machine whose speed drifts does not decide.

``python benchmarks/training.py [--steps 2000] [--repeat 3] [--json FILE]`` (needs ``make data``)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from joblib import Parallel, delayed
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import datasets, transforms

from bn_replication import runner
from bn_replication.schema import Config, validate
from bn_replication.train import CONFIGS, resolved

NORMS, SEEDS, BATCH = ("none", "batch"), (0, 1), 60


def configuration(results: Path, *overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        tree = compose("train", overrides=["experiment=fig1_mnist", f"machine.results={results}", *overrides])
    return validate(resolved(tree))


def peer_net(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 784
    for _ in range(3):
        layers += [nn.Linear(width, 100), *([nn.BatchNorm1d(100)] if norm == "batch" else []), nn.Sigmoid()]
        width = 100
    return nn.Sequential(*layers, nn.Linear(width, 10))


def peer_run(dataset: Dataset, norm: str, steps: int) -> None:
    """The loop as tutorials have it."""
    model = peer_net(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    done = 0
    while True:
        for images, labels in DataLoader(dataset, batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                return


def our_run(cfg: Config) -> None:
    outcome = runner.run(cfg, cfg.norm.name)
    assert outcome.status == "completed", outcome


def timed(function, clock=time.perf_counter) -> float:
    began = clock()
    function()
    return clock() - began


def throughput(steps: int, repeat: int, scratch: Path) -> dict[str, list[float]]:
    """Return steps a second of each contender, a value a repetition."""
    root = scratch / "torchvision"
    (root / "MNIST").mkdir(parents=True)
    (root / "MNIST" / "raw").symlink_to(Path("data/mnist").resolve())
    binary = transforms.Compose([transforms.ToTensor(), transforms.Lambda(lambda x: (x > 0.5).float())])
    images = datasets.MNIST(str(root), train=True, transform=binary)
    tensors = TensorDataset((images.data[:, None] > 127).float(), images.targets)
    peers = {"torchvision DataLoader": images, "tensors in a DataLoader": tensors}
    jobs = [(norm, seed) for norm in NORMS for seed in SEEDS]
    workers = Parallel(n_jobs=os.cpu_count())
    fixed = [f"steps={steps}", "evaluate.times=1", "probe.enabled=false", "wandb=disabled"]

    def ours(name: str) -> None:
        cfgs = [configuration(scratch / name, *fixed, f"norm={norm}", f"seed={seed}") for norm, seed in jobs]
        workers(delayed(our_run)(cfg) for cfg in cfgs)

    ours("warm-up")
    speeds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for repetition in range(repeat):
        for name in speeds:
            began = time.perf_counter()
            if name == "ours":
                ours(f"run{repetition}")
            else:
                for norm, _ in jobs:
                    peer_run(peers[name], norm, steps)
            speeds[name].append(len(jobs) * steps / (time.perf_counter() - began))
    return speeds


def overheads(repeat: int, scratch: Path) -> dict[str, list[float]]:
    """Return the share of a study's run that probes and rows cost, and the fixed seconds of a further run.

    The share is of the processor's time of this one thread, which another program on the machine does not lengthen.
    """
    shares, fixed = [], []
    again = ["norm=batch", "steps=1", f"wandb.directory={scratch}", "evaluate.times=1"]
    our_run(configuration(scratch / "warm", *again))
    # The study's own number of probes and rows in a short run, against the same run without either.
    short = ["norm=batch", f"steps={configuration(scratch).steps // 10}", "evaluate.times=10"]
    for k in range(repeat):
        once = configuration(scratch / f"again{k}", *again)
        fixed.append(timed(lambda cfg=once: our_run(cfg)))
        bare = configuration(scratch / f"bare{k}", *short, "probe.enabled=false", "wandb=disabled")
        full = configuration(scratch / f"full{k}", *short, f"wandb.directory={scratch}")
        without = timed(lambda cfg=bare: our_run(cfg), time.process_time)
        with_both = timed(lambda cfg=full: our_run(cfg), time.process_time)
        # All of the study's probes fall into a tenth of its steps here: a tenth of the difference is its share.
        shares.append((with_both - without) / (10 * without))
    return {"fixed_seconds_of_a_further_run": fixed, "probes_and_logging_share": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="a run (default 2000)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/training.json"), help="default: %(default)s"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        speeds = throughput(options.steps, options.repeat, Path(scratch))
        torch.set_num_threads(1)
        costs = overheads(options.repeat, Path(scratch))
    ours = speeds["ours"]
    print(f"{'Figure 1 net, steps/s':32}{'median':>10}{'ours/it: min':>14}{'median':>9}{'max':>9}   target")
    for name, values in speeds.items():
        ratios = sorted(a / b for a, b in zip(ours, values, strict=True))
        target = ">= 3" if name.startswith("torchvision") else ""
        print(
            f"{name:32}{statistics.median(values):>10.0f}{ratios[0]:>14.2f}{statistics.median(ratios):>9.2f}"
            f"{ratios[-1]:>9.2f}   {target}"
        )
    for name, key, form, target in (
        ("probes and logging, share of a run", "probes_and_logging_share", "{:.2%}", "<= 2%"),
        ("fixed cost of a further run, s", "fixed_seconds_of_a_further_run", "{:.2f}", "<= 1"),
    ):
        low, middle, high = map(form.format, (min(costs[key]), statistics.median(costs[key]), max(costs[key])))
        print(f"{name:36} median {middle:>6}  [{low}, {high}]   target {target}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"steps_per_second": speeds, **costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

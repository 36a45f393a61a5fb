"""Figure 4 (Sec. 4.2.3): one network with one crop, with 144, and six networks together.

``python -m bn_replication.ensemble`` takes the weights that the runs of ``fig4_ensemble`` kept and puts every network,
under Algorithm 2's statistics, on the same test images. A seed whose six networks have ended gives four records, the
arms ``evaluation=``

- ``single_crop``, ``multicrop``: a single network's error, which is the mean of the six networks' own errors;
- ``ensemble``, ``ensemble_single_crop``: the error of the mean of the six networks' class probabilities,

each with a row for every network, or for the first 1 to 6 of them together, in ``members.jsonl``. A network that
diverged stays in: it gives every class the same probability. Each network's probabilities are kept beside its
weights, so that an evaluation that was cut off goes on. Then Figure 4's table is printed, the paper's numbers beside
ours.
"""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bn_replication.ledger import SCALES

STUDY = "fig4_ensemble"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.ensemble", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--root", type=Path, default=Path("results/runs"), help="root of the records")
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--study", default=STUDY, help="whose runs; default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--source", type=Path, help="where the data set's usual files lie, as data.source")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=-1, help="networks at a time; -1: one a core, on a GPU one")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as training was given: where it ran and from what data; the rest is passed over",
    )
    options = parser.parse_args(arguments)
    flags = {"machine.results": "root", "machine.device": "device", "data.root": "data", "data.source": "source"}
    flags["machine.jobs"] = "jobs"
    words = []
    for text in options.overrides:
        key, given, value = text.partition("=")
        if not given:
            parser.error(f"found {text}, expected KEY=VALUE")
        words += [f"--{flags[key]}={value}"] if key in flags else []
    return parser.parse_args(words, options)  # what was said before stays where they say nothing


# The command line first: what follows takes seconds to import, and --help needs none of it.
ARGUMENTS = parse() if __name__ == "__main__" else None

import datetime
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from bn_replication import build, checkpoint, evaluate, fig4, records
from bn_replication.data import Images, Pictures, Split, load
from bn_replication.errors import UserError, one_line, writing
from bn_replication.inputs import Inputs
from bn_replication.jobs import cores
from bn_replication.ledger import PAPER, read_yaml
from bn_replication.norms import frozen, population_statistics
from bn_replication.provenance import environment
from bn_replication.schema import Config, validate
from bn_replication.status import axes
from bn_replication.streams import generator
from bn_replication.train import CONFIGS, resolved
from bn_replication.workers import pool

MEMBERS = "members.jsonl"  # of an evaluation: what each network does, or the first so many together
PROBABILITIES = "probabilities.pt"
SCHEMES = ("one", "many")
ROOT_FLAG = "--root (make: RESULTS=...)"


@dataclass(frozen=True)
class Place:
    """Where an evaluation happens: nothing here changes a number beyond rounding."""

    device: str
    data: Path
    source: Path | None


class Member(NamedTuple):
    """One network of an ensemble: its class probabilities (N, classes) under each scheme, and the seconds they took."""

    variant: str
    weights: str  # their digest, or "diverged"
    probabilities: dict[str, Tensor]
    seconds: dict[str, float]


# --- one network ------------------------------------------------------------------------------------------


def configuration(record: Mapping[str, Any], place: Place) -> Config:
    """Return the configuration of a recorded run, told where to find its data here."""
    config = record["config"]
    here = _here(record["scale"], place)
    cfg = validate({**here, **config, "data": {**config["data"], **here["data"]}, "scale": here["scale"]})
    if cfg.identity() != config:
        raise UserError("found runs of another version's configuration, expected this one's; run the study again")
    return cfg


@cache
def _here(scale: str, place: Place) -> dict[str, Any]:
    """Return the parts of a configuration that are no part of what a run is."""
    words = [f"scale={scale}", "wandb=disabled", f"machine.device={place.device}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        tree = resolved(compose("train", overrides=words))
    kept = {key: tree[key] for key in ("machine", "wandb", "scale", "tuned")}
    # Not through Hydra's grammar, in which some characters of a path mean something.
    return {**kept, "data": {"root": str(place.data), "source": place.source and str(place.source)}}


def network(cfg: Config, split: Split, inputs: Inputs, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the trained network, under Algorithm 2's statistics unless its configuration asks for none."""
    train, example = split.train, inputs.held_out(0, 2)[0]
    model = build.network(cfg)(train.shape, train.classes, generator(cfg.seed, "initialise"), example)
    model.load_state_dict(weights)
    assert cfg.evaluate.keep is not None
    if not (batches := cfg.evaluate.keep.statistics_batches):
        return model.eval()
    return frozen(model, population_statistics(model, inputs.after_training(batches)))


def data_of(cfg: Config) -> tuple[Split, Images | Pictures, Tensor]:
    """Return a study's data, and of it the images that its networks are evaluated on, with their labels on the CPU."""
    assert cfg.evaluate.keep is not None
    data, device = cfg.data, cfg.machine.device
    split = load(data.name, data.root, data.split, data.subset, data.source, device, data.size, data.images)
    first = split.held_out.part(None, cfg.evaluate.keep.examples or None)
    return split, first, first.labels.cpu()


def views(images: Images | Pictures) -> Iterator[Tensor]:
    """Yield whole images, uint8 (N, C, H, W), all that have one shape together: photographs one by one."""
    if isinstance(images, Images):
        yield images.images
    else:
        yield from (images.whole(index)[None] for index in range(len(images)))


def measure(directory: Path, place: Place) -> Member:
    """Return the class probabilities of the network trained in ``directory``, computed if they are not there yet."""
    torch.set_num_threads(1)  # networks side by side beat one with several threads
    record = records.read_run_json(directory)
    assert record is not None
    cfg, variant = configuration(record, place), record["choices"]["variant"]
    split, images, labels = data_of(cfg)
    if record["status"] == "diverged":
        even = torch.full((len(labels), split.train.classes), 1 / split.train.classes, dtype=torch.float64)
        return Member(variant, "diverged", dict.fromkeys(SCHEMES, even), dict.fromkeys(SCHEMES, 0.0))
    signed = record["kept"][checkpoint.WEIGHTS]
    if (directory / PROBABILITIES).exists():
        found = checkpoint.kept(directory / PROBABILITIES)
        if found["weights"] == signed:
            return Member(variant, signed, found["probabilities"], found["seconds"])
    weights = checkpoint.kept(directory / checkpoint.WEIGHTS, signed, place.device)
    keep, size, inputs = cfg.evaluate.keep, split.train.shape[1], Inputs(cfg, split)
    assert keep is not None
    try:
        model = network(cfg, split, inputs, weights)
    finally:
        inputs.close()
    schemes = (evaluate.centre, partial(evaluate.many, short_sides=tuple(keep.short_sides)))
    probabilities, seconds = {}, {}
    for name, scheme in zip(SCHEMES, schemes, strict=True):
        clock = time.monotonic()
        parts = [
            evaluate.class_probabilities(model, part, scheme(*part.shape[2:], size), size, inputs.to_input)
            for part in views(images)
        ]
        probabilities[name] = torch.cat(parts)
        seconds[name] = round(time.monotonic() - clock, 2)
    state = {"weights": signed, "probabilities": probabilities, "seconds": seconds}
    with writing(directory, ROOT_FLAG):
        checkpoint.keep(directory / PROBABILITIES, state)
    return Member(variant, signed, probabilities, seconds)


# --- six together -----------------------------------------------------------------------------------------


def ensembles(root: Path, study: str, scale: str) -> tuple[dict[tuple[str, int], dict[str, Path]], list[str]]:
    """Return the runs of each ensemble whose networks have all ended, and a line about each other one.

    An ensemble is what its runs' arms share besides the variant, and a seed; its networks are those that the study's
    sweep names, in that order.
    """
    wanted = [str(variant) for variant in axes(STUDY, scale)["variant"]]
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for directory in records.run_directories(root, study, scale):
        record = records.read_run_json(directory)
        assert record is not None  # its run.json was listed a moment ago
        variant = record["choices"].get("variant")
        if variant in wanted and record["config"]["evaluate"].get("keep") and record["status"] != "failed":
            rest = ",".join(part for part in record["arm"].split(",") if not part.startswith("variant="))
            found.setdefault((rest, record["seed"]), {})[variant] = directory
    whole, lacking = {}, []
    for (rest, seed), runs in sorted(found.items()):
        if missing := [variant for variant in wanted if variant not in runs]:
            lacking.append(f"seed {seed}{f' ({rest})' if rest else ''}: not yet there: {', '.join(missing)}")
        else:
            whole[rest, seed] = {variant: runs[variant] for variant in wanted}
    return whole, lacking


class Row(NamedTuple):
    """An evaluation: of how many crops and networks, the numbers of its summary, the rows beside them, its seconds."""

    crops: int
    models: int
    summary: dict[str, float]
    members: list[dict[str, Any]]
    seconds: float


def rows(members: Sequence[Member], labels: Tensor, crops: int) -> Iterator[tuple[str, Row]]:
    """Yield the four evaluations of an ensemble by name: a single network, and all together, with one crop and many."""
    for scheme, count in zip(SCHEMES, (1, crops), strict=True):
        own = [evaluate.errors(member.probabilities[scheme], labels) for member in members]
        mean = {key: sum(each[key] for each in own) / len(own) for key in own[0]}
        of_each = [{"variant": member.variant, **each} for member, each in zip(members, own, strict=True)]
        seconds = sum(member.seconds[scheme] for member in members)
        yield ("single_crop" if count == 1 else "multicrop"), Row(count, 1, mean, of_each, seconds)
        first = [
            evaluate.errors(evaluate.together([member.probabilities[scheme] for member in members[:k]]), labels)
            for k in range(1, len(members) + 1)
        ]
        growing = [{"models": k, **each} for k, each in enumerate(first, start=1)]
        name = "ensemble_single_crop" if count == 1 else "ensemble"
        yield name, Row(count, len(members), first[-1], growing, seconds)


def write(root: Path, rest: str, runs: Mapping[str, Path], members: Sequence[Member], place: Place) -> list[str]:
    """Write the records of one ensemble that are not there yet; return a line about each.

    Raises :class:`UserError` if its networks were not to be evaluated alike, or if there is a record of others.
    """
    found = [record for directory in runs.values() if (record := records.read_run_json(directory))]
    cfgs = [configuration(record, place) for record in found]
    cfg, record = cfgs[0], found[0]
    keep = cfg.evaluate.keep
    assert keep is not None
    if any((one.evaluate.keep, one.data, one.seed, one.steps) != (keep, cfg.data, cfg.seed, cfg.steps) for one in cfgs):
        raise UserError(f"found networks of several data sets or evaluations in {root}, expected one; run them again")
    split, _, labels = data_of(cfg)
    size = split.train.shape[1]
    crops = evaluate.many(size, size, size, tuple(keep.short_sides)).values()
    # The rules that stood when the first of its networks began: what is judged here was under way from then on.
    rules = min(found, key=lambda one: one["started"])["rules"]
    started = datetime.datetime.now(datetime.UTC)
    lines = []
    for name, row in rows(members, labels, sum(crops)):
        arm = ",".join(sorted(filter(None, [f"evaluation={name}", *rest.split(",")])))
        directory = records.run_directory(root, record["scale"], record["study"], arm, cfg.seed)
        config = {"study": record["study"], "seed": cfg.seed, "steps": cfg.steps, "evaluation": name}
        config |= {"crops": row.crops, "models": row.models, "examples": len(labels)}
        config |= {"members": {member.variant: member.weights for member in members}}
        config |= {"keep": keep.model_dump(mode="json"), "data": record["config"]["data"]}
        if (before := records.read_run_json(directory)) is not None:
            if before["config"] != config:
                raise UserError(f"{directory}: found a record of other networks; remove it to evaluate these")
            lines.append(f"{arm} seed={cfg.seed}: complete already")
            continue
        text = "".join(map(records.json_line, row.members)).encode()
        diverged = sum(member.weights == "diverged" for member in members)
        ended = {
            "study": record["study"],
            "arm": arm,
            "seed": cfg.seed,
            "scale": record["scale"],
            "status": "completed",
            "reason": None,
            "steps_done": cfg.steps,
            "summary": {**row.summary, "diverged_members": diverged},
            "config": config,
            "choices": {"evaluation": name, "data": cfg.data.name, "scale": record["scale"]},
            "rules": rules,
            "files": {MEMBERS: records.digest(text)},
            "environment": environment(place.device, 1),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(row.seconds, 2),
        }
        with writing(directory, ROOT_FLAG):
            directory.mkdir(parents=True, exist_ok=True)
            records.atomic_write(directory / MEMBERS, text)
            records.write_run_json(directory, ended)
        lines.append(f"{arm} seed={cfg.seed}: top-1 error {row.summary['top1_error']:.4f}")
    return lines


@one_line("error: ")
def main(options: argparse.Namespace) -> int:
    """Evaluate every network and ensemble that has no record yet, print Figure 4's table, and return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    place = Place(options.device, options.data, options.source)
    try:
        build.device(place.device, "--device")
        whole, lacking = ensembles(options.root, options.study, options.scale)
        for line in lacking:
            print(line, flush=True)
        if not whole:
            raise UserError(
                f"found no six networks of one seed in {options.root}/{options.scale}/{options.study}, expected those "
                f"that a study keeps; run `make ensemble` or `make {STUDY}`, or mend --root or --scale"
            )
        directories = [directory for runs in whole.values() for directory in runs.values()]
        jobs = options.jobs if options.jobs > 0 else 1 if place.device != "cpu" else cores()
        measured = _measure_all(directories, place, min(jobs, len(directories)))
        for (rest, _), runs in whole.items():
            for line in write(options.root, rest, runs, [measured[path] for path in runs.values()], place):
                print(line, flush=True)
        print()
        print(fig4.text(options.root, options.study, options.scale, read_yaml(PAPER)["fig4"]))
    except KeyboardInterrupt:
        return 130
    return 0


def _measure_all(directories: Sequence[Path], place: Place, jobs: int) -> dict[Path, Member]:
    """Return what :func:`measure` gives of each directory, several at a time, with a line on each as it comes."""
    one = partial(measure, place=place)

    def told(members: Iterable[Member]) -> dict[Path, Member]:
        found = {}
        for directory, member in zip(directories, members, strict=True):
            print(f"{'/'.join(directory.parts[-2:])}: {sum(member.seconds.values()):.0f} s", flush=True)
            found[directory] = member
        return found

    if jobs == 1:
        return told(map(one, directories))
    with pool(jobs, "take fewer with --jobs (make: JOBS=...)") as workers:
        return told(workers.map(one, directories))


if ARGUMENTS is not None:
    from bn_replication.ensemble import main as run_main  # by its importable name, so that workers find it

    sys.exit(run_main(ARGUMENTS))

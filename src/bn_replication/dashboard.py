"""A Weights & Biases workspace and report, made from code: ``python -m bn_replication.dashboard``.

The workspace has a section for learning curves, one for rates, one a kind of net with what each of its
nonlinearities receives (percentile bands and histograms over steps), one with the gradients of each layer's
weights, and one a study. The report mirrors ours: the scoreboard, then a section a study with its curves and its
claims. Both are saved to the account that ``wandb login`` has stored. Without one nothing is sent: they are built
and validated, and what they would hold is printed. ``--sync STUDY`` uploads the runs of a study that were
mirrored offline and are not uploaded yet; it may be stopped and typed again. ``--sweep STUDY`` prints a study's
grid as a W&B sweep file. The files under ``results/`` are the truth: nothing is read from wandb.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bn_replication import records
from bn_replication.claims import judge
from bn_replication.errors import UserError, nearest, one_line, writing
from bn_replication.figures import Frame
from bn_replication.ledger import EXPERIMENTS, PAPER, Entry, load_ledger, read_yaml
from bn_replication.records import load_runs, run_rows
from bn_replication.report import asks
from bn_replication.scoreboard import END, START, scoreboard_markdown
from bn_replication.status import axes
from bn_replication.status import studies as all_studies

SETTINGS = EXPERIMENTS.parent / "configs" / "wandb" / "online.yaml"
CURVES = ("test_accuracy", "validation_accuracy", "test_loss", "train_loss", "train_accuracy")
SAVE_PATIENCE = 90.0  # seconds to save both; wandb's own retries go on for minutes
SYNC_PATIENCE = 120.0  # seconds to upload one run
HEAD = 1 << 16  # bytes in which a mirrored run says which study it is of


@dataclass(frozen=True)
class Study:
    """A study as the dashboard shows it: its name, what it asks, its claims, and the layers its net has."""

    name: str
    asks: str
    claims: list[Entry]


# --- what is shown ------------------------------------------------------------------------------------------


def gather(roots: Sequence[Path]) -> tuple[list[Study], dict[str, list[str]], str]:
    """Return the studies, each kind of net's layers in depth order, and the scoreboard in Markdown.

    Layers are those of the records in ``roots``; a net that has none yet has no section.
    """
    ledger, runs = load_ledger(), load_runs(list(roots))
    found = [Study(name, asks(name), [e for e in ledger.values() if e.study == name]) for name in all_studies()]
    boards = []
    for root in roots:
        if len(own := load_runs(root)):  # judged apart, as in our own report
            board = scoreboard_markdown(judge(ledger, own), ledger, read_yaml(PAPER))
            boards.append(f"**Records in {root}.** " + board.replace(START, "").replace(END, "").strip())
    return found, layers_of(runs), "\n\n".join(boards) or "No records yet."


def layers_of(runs: Frame) -> dict[str, list[str]]:
    """Return the layers that each kind of net was probed at, of the first run that has any."""
    layers: dict[str, list[str]] = {}
    if "choice.model" in runs:
        for model, own in runs.groupby("choice.model", sort=True):
            for run in own["run"]:
                names = list(dict.fromkeys(row["layer"] for row in run_rows(Path(run), records.ACTIVATIONS)))
                if names:
                    layers[str(model)] = names
                    break
    return layers


@functools.cache
def _library() -> tuple[Any, Any]:
    """Return the modules of reports and of workspaces; importing them warns of nothing that we could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import wandb_workspaces.reports.v2
        import wandb_workspaces.workspaces
    return wandb_workspaces.reports.v2, wandb_workspaces.workspaces


def _line(title: str, y: Sequence[str], **options: Any) -> Any:
    """Return a line plot over optimiser steps: our own column, as wandb's ``Step`` only counts rows."""
    wr, _ = _library()
    return wr.LinePlot(title=title, x="step", y=list(y), title_x="training steps", **options)


def _curves() -> list[Any]:
    # Grouped as the table of runs is: a line is the median of an arm's seeds, its band their range.
    band: dict[str, Any] = {"groupby_aggfunc": "median", "groupby_rangefunc": "minmax"}
    return [_line(column.replace("_", " "), [column], **band) for column in CURVES]


def _activations(layers: Sequence[str]) -> list[Any]:
    panels = []
    for layer in layers:
        band = [f"activations/{layer}/{name}" for name in ("p15", "p50", "p85")]
        panels.append(_line(f"{layer}: 15th, 50th, 85th percentile", band))
        panels.append(_line(f"{layer}: histogram over steps", [f"histograms/{layer}"]))
    return panels


def _gradients(layers: Sequence[str]) -> list[Any]:
    # Grouped as the curves are; over decades, as what vanishes does so by factors.
    band: dict[str, Any] = {"groupby_aggfunc": "median", "groupby_rangefunc": "minmax", "log_y": True}
    return [_line(f"{layer}: rms of d loss / d W", [f"gradients/{layer}"], **band) for layer in layers]


def _about(study: Study) -> str:
    """Return a study in Markdown: what it asks, what it decides, and how to see it alone."""
    lines = [study.asks or "Decided by numerics, on any machine; it has no runs here."]
    lines += [f"- **{entry.id}** ({entry.where}): {entry.says}" for entry in study.claims]
    return "\n".join([*lines, "", f"Filter the runs by `Group = {study.name}`; an arm is a `Job Type`."])


def _panels(study: Study) -> list[Any]:
    wr, _ = _library()
    # A workspace has one set of runs, so its title says which of them the plot is of; the report has sets of its own.
    accuracy = _line(f"held-out accuracy, with Group = {study.name}", CURVES[:2], groupby_rangefunc="minmax")
    return [wr.MarkdownPanel(markdown=_about(study)), *([accuracy] if study.asks else [])]


def workspace(entity: str, project: str, studies: Sequence[Study], layers: Mapping[str, Sequence[str]]) -> Any:
    """Return the workspace: runs by study and arm, every x axis in optimiser steps."""
    _, ws = _library()
    sections = [
        ws.Section(name="Learning curves", panels=_curves(), is_open=True),
        ws.Section(name="Rates", panels=[_line("learning rate", ["rate"], log_y=True)]),
        *(
            ws.Section(name=f"Activation distributions: {model}", panels=_activations(names))
            for model, names in layers.items()
        ),
        *(ws.Section(name=f"Gradients: {model}", panels=_gradients(names)) for model, names in layers.items()),
        *(ws.Section(name=f"Study: {study.name}", panels=_panels(study)) for study in studies),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Batch Normalization, replicated",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )


def report(entity: str, project: str, studies: Sequence[Study], scoreboard: str) -> Any:
    """Return the report: the scoreboard, then a section a study on its own runs alone."""
    wr, _ = _library()
    blocks: list[Any] = [wr.TableOfContents(), wr.H1(text="Scoreboard"), wr.MarkdownBlock(text=scoreboard)]
    for study in studies:
        blocks += [wr.H1(text=study.name), wr.MarkdownBlock(text=_about(study))]
        if study.asks:
            # Of the report's own project: with one named, wandb would ask the server about it while building.
            runs = wr.Runset(name=study.name, filters=f'Metric("Group") == "{study.name}"', groupby=["JobType"])
            blocks.append(wr.PanelGrid(runsets=[runs], panels=_curves()[:4]))
    return wr.Report(
        entity=entity,
        project=project,
        title="Batch Normalization, replicated claim by claim",
        description="Ioffe & Szegedy (2015). A mirror of results/report.html, which is the record.",
        blocks=blocks,
        width="fluid",
    )


def validated(made: Any) -> dict[str, Any]:
    """Return a workspace or report as what would be sent, less the identifiers that are drawn anew each time."""

    def settled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: settled(item) for key, item in value.items() if key not in ("id", "__id__")}
        return [settled(item) for item in value] if isinstance(value, list) else value

    return settled(json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)))


def describe(made: Any, board: Any) -> str:
    """Return in plain words what would be made."""
    lines = [f"workspace '{made.name}' in project '{made.project}':"]
    lines += [f"  {section.name}  (panels: {len(section.panels)})" for section in made.sections]
    titles = [block.text for block in board.blocks if type(block).__name__ == "H1"]
    return "\n".join([*lines, f"report '{board.title}', {len(titles)} sections: {', '.join(map(str, titles))}"])


# --- the account --------------------------------------------------------------------------------------------


def logged_in() -> bool:
    """Return whether an API key is stored or in the environment; the network is not asked."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # of many kinds, all of which mean no
        return False


def bounded(action: Callable[[], object], patience: float, what: str) -> None:
    """Carry out ``action`` in at most ``patience`` seconds.

    Raises :class:`UserError` where it fails or does not answer: the account or the network is at fault.
    """
    failure: list[BaseException] = [TimeoutError(f"no answer for {patience:.0f} s")]

    def attempt() -> None:
        try:
            action()
            failure.clear()
        except BaseException as error:  # wandb raises SystemExit, too
            failure[:] = [error]

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(patience)
    if failure:
        reason = " ".join(str(failure[0]).split()) or type(failure[0]).__name__
        raise UserError(
            f"found wandb not to answer ({reason}), expected to {what}; see to the network or `wandb login`"
        )


# --- uploading what was mirrored offline --------------------------------------------------------------------


def offline_runs(directory: Path, study: str) -> list[Path]:
    """Return the mirrored runs of ``study`` that are not uploaded, in the order in which they began."""
    found = []
    for path in sorted(directory.glob("offline-run-*/run-*.wandb")):
        with path.open("rb") as file:
            # A quick look, which may find too many: inspect() says for certain.
            if study.encode() in file.read(HEAD) and not path.with_suffix(".wandb.synced").exists():
                found.append(path)
    return found


def inspect(path: Path) -> dict[str, Any]:
    """Return what ``wandb leet`` reads in a mirrored run, its ``config`` and ``state`` among it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return {"config": {}, "state": "unreadable"}


def upload(path: Path, patience: float) -> str:
    """Upload one mirrored run; return why it failed, or nothing. wandb leaves a mark beside what it has sent."""
    command = [sys.executable, "-m", "wandb", "sync", str(path.parent)]
    try:
        # Its log goes beside the runs, not where the command was typed.
        env = os.environ | {"WANDB_DIR": str(path.parents[2])}
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False, env=env)
    except subprocess.TimeoutExpired:
        return f"no answer for {patience:.0f} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    sent = path.with_suffix(".wandb.synced").exists()
    return "" if sent else (said[-1].removeprefix("wandb: ") if said else f"exit code {done.returncode}")


def sync(directory: Path, study: str, patience: float = SYNC_PATIENCE) -> int:
    """Upload the runs of ``study`` that have ended and are not uploaded yet; stop at the first that cannot be.

    Returns 0 if nothing is left to send, 1 if something is: typed again, it goes on where it stopped.
    """
    sent, left = 0, 0
    waiting = [(path, inspect(path)) for path in offline_runs(directory, study)]
    own = [(path, seen["state"]) for path, seen in waiting if seen["config"].get("study") == study]
    unreadable = [path.parent.name for path, seen in waiting if seen["state"] == "unreadable"]
    ended = [path for path, state in own if state != "running"]
    failure = ""
    for path in ended:
        failure = upload(path, patience)
        if failure:
            left = len(ended) - sent
            break
        sent += 1
        print(f"{sent}/{len(ended)} {path.parent.name}", flush=True)
    unfinished = len(own) - len(ended)
    print(
        f"{study}: {sent} uploaded, {left} left" + f", {unfinished} unfinished left where they are" * bool(unfinished)
    )
    if failure:
        print(f"stopped: {failure}; the same command goes on from here", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable)} cannot be read, {unreadable[0]} first; remove what is damaged", file=sys.stderr)
    return int(bool(left or unreadable))


def sweep(study: str, scale: str = "laptop") -> str:
    """Return a study's grid as a W&B sweep, in YAML: the same runs, handed out by wandb's agents."""
    grid = {key: {"values": values} for key, values in axes(study, scale).items()}
    if not grid:
        raise UserError(
            f"found no sweep of '{study}', expected a study of configs/experiment{nearest(study, all_studies())}"
        )
    module = "bn_replication.train"
    command = ["${env}", "${interpreter}", "-m", module, f"experiment={study}", f"scale={scale}", "wandb=online"]
    body = {"name": study, "program": module, "method": "grid", "parameters": grid}
    return yaml.safe_dump(body | {"command": [*command, "${args_no_hyphens}"]}, sort_keys=False)


@one_line()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.dashboard", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--sync", metavar="STUDY", help="upload this study's offline runs and make nothing")
    parser.add_argument("--sweep", metavar="STUDY", help="print this study's grid as a W&B sweep file")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write what would be sent there, and send nothing")
    parser.add_argument("--directory", type=Path, default=Path("results/wandb"), help="default: %(default)s")
    parser.add_argument("--root", type=Path, action="append", help="root of records; default: both of results/")
    options = parser.parse_args(arguments)
    if options.sweep is not None:
        print(sweep(options.sweep), end="")
        return 0
    if options.sync is not None:
        if options.sync not in all_studies():
            raise UserError(
                f"found no study '{options.sync}', expected one of configs/experiment/"
                f"{nearest(options.sync, all_studies())}; give it as STUDY=..."
            )
        if not logged_in():
            raise UserError("found no wandb account, expected one to upload to; `wandb login` stores its key")
        return sync(options.directory, options.sync)
    return make(options.root or [Path("results/published"), Path("results/runs")], options.json)


def make(roots: Sequence[Path], folder: Path | None) -> int:
    """Build and validate both; save them where there is an account and no ``folder`` to write them to instead."""
    settings = yaml.safe_load(SETTINGS.read_text())
    project, entity = settings["project"], settings["entity"]
    found, layers, board = gather(roots)
    account = folder is None and logged_in()
    if account and entity is None:
        import wandb

        def ask() -> None:
            nonlocal entity
            entity = wandb.Api(timeout=15).default_entity

        bounded(ask, SAVE_PATIENCE, "name the account")
    made = workspace(entity or "you", project, found, layers), report(entity or "you", project, found, board)
    sizes = [len(json.dumps(validated(each))) for each in made]
    print(describe(*made))
    print(f"valid: {sizes[0] / 1000:.0f} kB and {sizes[1] / 1000:.0f} kB")
    if folder is not None:
        with writing(folder, "--json"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, each in zip(("workspace", "report"), made, strict=True):
                text = json.dumps(validated(each), indent=1, ensure_ascii=False)
                records.atomic_write(folder / f"{name}.json", (text + "\n").encode())
        print(f"written to {folder}")
    elif account:
        for each in made:
            bounded(each.save, SAVE_PATIENCE, "save there")
            print(each.url)
    else:
        print("no wandb account here, so nothing was sent; `wandb login`, then the same command makes both")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which figures a study's records can feed, and which settings to mark by the claims of the ledger that it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bn_replication.figures.beyond import draw_gradient_ratio, draw_landscape
from bn_replication.figures.files import Drawing
from bn_replication.figures.frames import accuracy, questions, swept, trained
from bn_replication.figures.general import draw_curves, draw_depth, draw_ends, draw_layers, draw_response, draw_slopes
from bn_replication.figures.particular import (
    draw_changes,
    draw_cost,
    draw_detached,
    draw_fig1a,
    draw_fig1bc,
    draw_fig2,
    draw_inputs,
    draw_jacobians,
    draw_linear_shares,
    draw_losses,
    draw_statistics,
)
from bn_replication.figures.style import Frame
from bn_replication.ledger import Entry, load_ledger
from bn_replication.records import load_activations, load_curves


def draw_study(runs: Frame, ledger: Mapping[str, Entry] | None = None, without: Sequence[str] = ()) -> list[Drawing]:
    """Return every figure that the records of one study at one scale can feed, the most telling first.

    What a study measures besides its curves has a figure of its own; else a swept number is an axis, and settings that
    are no numbers stand side by side. ``ledger`` (the suite's, if not given) says which settings a claim compares;
    ``without`` names figures of curves and layers that are not wanted, which takes most of the time.
    """
    # What only runs of other studies have is no part of this one.
    runs = trained(runs).dropna(axis="columns", how="all").infer_objects()
    curves, activations = load_curves(runs), load_activations(runs)
    entries = questions(runs, load_ledger() if ledger is None else ledger)
    drawings: list[Drawing | None] = [
        draw_landscape(runs, curves),
        draw_gradient_ratio(runs),
        draw_linear_shares(runs, activations),
        draw_jacobians(runs, activations),
        draw_statistics(runs, entries),
        *draw_inputs(runs, curves),
        draw_cost(runs, curves),
        draw_losses(runs, curves),
        draw_changes(runs, curves),
    ]
    own = any(drawings)
    few = runs["arm"].nunique() <= 4  # a column each
    if not own and few and "units" in activations and swept(runs) is None:
        drawings += [draw_fig1a(runs, curves), draw_fig1bc(runs, activations)]
        own = True
    elif "choice.variant" in runs and {"inception", "bn_baseline"} <= set(runs["choice.variant"]):
        drawings += [draw_fig2(runs, curves)]
    if {"b", "loss"} <= set(curves):
        drawings += [draw_detached(curves)]
    elif accuracy(curves) in curves:
        if not own:
            drawings += [draw_response(runs, curves, entries)]
            drawings += [draw_slopes(runs, curves, entries) or draw_ends(runs, curves)]
        drawings += [draw_curves(runs, curves)] if "curves" not in without else []
    drawings += [draw_layers(runs, activations)] if "layers" not in without else []
    drawings += [draw_depth(runs, activations)] if "depth" not in without else []
    return [drawing for drawing in drawings if drawing is not None]

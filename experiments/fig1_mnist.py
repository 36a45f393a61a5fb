"""Figure 1 as the paper prints it, three panels in a row: ``python experiments/fig1_mnist.py``.

(a) test accuracy over 50,000 steps, axis 0.7 to 1; (b) without and (c) with Batch Normalization, the {15, 50,
85}th percentiles of the input of one typical sigmoid of the last hidden layer, axis -2 to 2. "Typical" is
left open by the paper; :func:`bn_replication.figures.typical_units` says which unit it is here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure

from bn_replication import figures
from bn_replication.errors import UserError
from bn_replication.records import atomic_write, load_activations, load_curves, load_runs


@figures.styled
def draw(root: Path, scale: str) -> bytes:
    """Return the figure as SVG, from the records of study ``fig1_mnist`` below ``root``."""
    runs = load_runs(root, "fig1_mnist", scale)
    if not {"none", "batch"} <= set(runs["choice.norm"] if len(runs) else ()):
        raise UserError(f"found no fig1_mnist runs with norm none and batch in {root}/{scale}; run the study first")
    units, style = figures.unit_percentiles(load_activations(runs)), figures.looks(runs)
    figure = Figure(figsize=(8.4, 2.7))
    panels = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    figures.fig1a(panels[0], runs, load_curves(runs))
    panels[0].set_title("(a)")
    for ax, letter, norm in zip(panels[1:], "bc", ("none", "batch"), strict=True):
        arm = runs.loc[runs["choice.norm"] == norm, "arm"].iloc[0]
        figures.sigmoid_inputs(ax, units.loc[units["arm"] == arm], style[arm])
        ax.set_title(f"({letter}) {'without' if norm == 'none' else 'with'} BN")
    return figures.render(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("results/published"), help="records; default: %(default)s")
    parser.add_argument("--scale", default="laptop", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figure1.svg"), help="default: %(default)s")
    options = parser.parse_args()
    try:
        atomic_write(options.out, draw(options.root, options.scale))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Figures 2 and 3 as the paper prints them: ``python experiments/fig2_inception.py``.

Figure 2: accuracy over steps of Inception and its batch-normalised variants, with a mark where each reaches
Inception's best. Figure 3: initial rate, steps to that accuracy and best accuracy, the paper's numbers beside
ours, in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bn_replication import figures
from bn_replication.errors import UserError
from bn_replication.ledger import PAPER, read_yaml
from bn_replication.panels import fig3_rows
from bn_replication.records import atomic_write, load_curves, load_runs

PAPERS = [
    "inception",
    "bn_baseline",
    "bn_x5",
    "bn_x30",
    "bn_x5_sigmoid",
]  # the negative controls are in no figure of it
SIDES = [f"{what}, {side}" for what in ("rate", "steps", "times fewer", "accuracy") for side in ("paper", "ours")]
COLUMNS = ["seeds", *SIDES]


def draw(root: Path, scale: str) -> tuple[bytes, str]:
    """Return Figure 2 as SVG and Figure 3 as Markdown, from the records below ``root``."""
    runs = load_runs(root, "fig2_inception", scale)
    if "inception" not in set(runs["choice.variant"] if len(runs) else ()):
        raise UserError(f"found no fig2_inception runs of the plain Inception in {root}/{scale}; run the study first")
    runs = runs.loc[runs["choice.variant"].isin(PAPERS)]
    curves = load_curves(runs)
    table = figures.fig3_table(runs, curves, read_yaml(PAPER)["fig3"])
    rows = fig3_rows(table.loc[table["model"].isin([figures.VARIANTS[name].label for name in PAPERS])])
    lines = [f"| model | {' | '.join(COLUMNS)} |", "| --- " + "| ---: " * len(COLUMNS) + "|"]
    lines += [f"| {row['model']} | {' | '.join(row[column] for column in COLUMNS)} |" for row in rows]
    return figures.render(figures.draw_fig2(runs, curves).figure), "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("results/published"), help="records; default: %(default)s")
    parser.add_argument("--scale", default="laptop", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figure2.svg"), help="default: %(default)s")
    options = parser.parse_args()
    try:
        figure, table = draw(options.root, options.scale)
        atomic_write(options.out, figure)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table, options.out, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

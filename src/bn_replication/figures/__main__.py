"""Draw every figure, or those of the studies named: ``python -m bn_replication.figures [STUDY ...]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bn_replication.errors import UserError, nearest, one_line
from bn_replication.figures import draw_study, save
from bn_replication.records import load_runs


@one_line()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.figures", description="Draw every figure as SVG and PNG, with its CSV."
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="which studies; all of them if none is named")
    parser.add_argument("--root", type=Path, default=Path("results/published"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    runs = load_runs(options.root)
    known = sorted(set(runs["study"])) if len(runs) else []
    for study in options.studies:
        if study not in known:
            expected = f"expected one of {', '.join(known)}{nearest(study, known)}"
            raise UserError(f"found no runs of '{study}', {expected}")
    for study in options.studies or known:
        for scale, those in runs[runs["study"] == study].groupby("scale"):
            for drawing in draw_study(those):
                save(drawing, options.out / str(scale) / study)
                print(options.out / str(scale) / study / f"{drawing.name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

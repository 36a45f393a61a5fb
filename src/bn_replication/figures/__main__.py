"""Draw every figure, or those of the studies named: ``python -m bn_replication.figures [STUDY ...]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bn_replication.errors import UserError, nearest, one_line, writing
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
    if runs.empty:
        raise UserError(f"found no runs in {options.root}, expected some; run a study first or mend --root")
    known = sorted(set(runs["study"]))
    for study in options.studies:
        if study not in known:
            expected = f"expected one of {', '.join(known)}{nearest(study, known)}"
            raise UserError(f"found no runs of '{study}', {expected}")
    for study in options.studies or known:
        for scale, those in runs[runs["study"] == study].groupby("scale"):
            for drawing in draw_study(those):
                folder = options.out / str(scale) / study
                with writing(folder, "--out"):
                    save(drawing, folder)
                print(folder / f"{drawing.name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

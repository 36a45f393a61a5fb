"""Fetch and verify data sets: ``python -m bn_replication.data [mnist cifar10 fashion_mnist]``."""

from __future__ import annotations

import argparse
import sys

from bn_replication.data import sources
from bn_replication.errors import one_line


@one_line("error: ")
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bn_replication.data", description="Fetch and verify data sets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(sources.DATASETS)} (default: all)")
    parser.add_argument("--root", default="data", help="where they are put (default: %(default)s)")
    parser.add_argument(
        "--source",
        metavar="DIR",
        help="a directory that holds the files, plain, gzipped or in their archives; tried first",
    )
    args = parser.parse_args()
    for name in args.names or sources.DATASETS:
        folder = sources.ensure(name, args.root, args.source)
        files = sources.find(name).files
        size = sum(file.size for file in files) / 1e6
        print(f"{name}: {len(files)} files, {size:.0f} MB, verified, in {folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Records in the project's format from small synthetic curves, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bn_replication import records

STEPS = 1000


def write(
    root: Path,
    study: str,
    arm: str,
    seed: int,
    accuracies: Sequence[float] = (),
    *,
    scale: str = "laptop",
    steps: int = STEPS,
    status: str = "completed",
    choices: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, float] | None = None,
    units: Sequence[Any] = (),
    rules: Mapping[str, str] | None = None,
    rows: Sequence[Mapping[str, float]] | None = None,
) -> Path:
    """Write one run, with ``accuracies`` at every tenth of ``steps`` from step 0 on, or with ``rows``.

    ``arm`` is read as ``key=value,...`` for the choices unless those are given.
    """
    directory = root / scale / study / arm / f"seed={seed}"
    directory.mkdir(parents=True)
    if rows is None:
        rows = [{"step": i * steps // 10, "test_accuracy": value} for i, value in enumerate(accuracies)]
    texts = {records.CURVES: "".join(map(records.json_line, rows))}
    if units:
        probes = []
        for i, moving in enumerate(units):  # an earlier layer is recorded too, which moves not at all
            probes += [{"step": i, "layer": "act1", "units": units[0]}, {"step": i, "layer": "act3", "units": moving}]
        texts[records.ACTIVATIONS] = "".join(map(records.json_line, probes))
    for name, text in texts.items():
        (directory / name).write_text(text)
    if choices is None:
        choices = dict(pair.split("=") for pair in arm.split(",") if "=" in pair)
    record = {"study": study, "arm": arm, "seed": seed, "scale": scale, "status": status, "reason": None}
    record |= {"steps_done": rows[-1]["step"] if rows else 0, "summary": dict(summary or {})}
    record |= {
        "config": {"steps": steps, **(config or {})},
        "choices": dict(choices),
        "rules": dict(rules or {}),
    }
    record |= {"files": {name: records.digest(text.encode()) for name, text in texts.items()}}
    records.write_run_json(directory, {**record, "environment": {}, "started": "", "seconds": 1.0})
    return directory


def climb(end: float, reach: int, steps: int = STEPS, start: float = 0.1) -> list[float]:
    """Return a curve at every tenth of ``steps`` that rises evenly to ``end`` at step ``reach`` and stays."""
    return [start + (end - start) * min(1.0, i * steps / 10 / reach) for i in range(11)]

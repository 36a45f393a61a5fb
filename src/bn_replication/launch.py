"""A sweep through one of Hydra's launchers, ``hydra/launcher=slurm`` say: jobs run elsewhere, their records tell.

What is asked is composed and checked here first, so that a mistake costs no place in a queue. The jobs then belong to
the launcher; when it has ended, a run counts as what its ``run.json`` says it is. Without ``hydra/launcher=...`` a
sweep goes through :mod:`bn_replication.jobs` and never comes here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bn_replication import jobs, progress
from bn_replication.errors import UserError
from bn_replication.records import read_run_json, run_directory
from bn_replication.schema import validate

_OWN = ("", "basic")


def asked(words: Sequence[str]) -> str | None:
    """Return the launcher that a command line names, ``None`` for our own."""
    named = [word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")]
    return named[-1] if named and named[-1] not in _OWN else None


@contextmanager
def left_out() -> Iterator[None]:
    """Take the launcher and its options from the command line, as long as a sweep is only composed."""
    words = sys.argv
    sys.argv = [word for word in words if not word.startswith(("hydra/launcher=", "hydra.launcher."))]
    try:
        yield
    finally:
        sys.argv = words


def carry_out(queue: Sequence[jobs.Job], submit: Callable[[], object]) -> None:
    """Have ``submit`` carry out the jobs of ``queue``, wait until it has, and report each by its record.

    Raises :class:`UserError` for a mistake in a job, before any is submitted or as one was refused where it ran.
    """
    before = {place: read_run_json(place) for place in map(_place, queue)}
    for job in queue:
        validate(job["tree"])
    listening = os.environ.pop(progress.VARIABLE)  # a folder of this machine, which a job on another cannot reach
    try:
        submit()
    except (HydraException, OmegaConfBaseException):
        before = {}  # nothing was submitted: no such launcher, or an option it has not
        raise
    except UserError:
        raise
    except Exception as error:  # of one job, or the launcher's own: each job's end is told below
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    finally:
        os.environ[progress.VARIABLE] = listening
        for job in queue if before else ():
            _tell(job, before[_place(job)])


def _place(job: jobs.Job) -> Path:
    tree: dict[str, Any] = job["tree"]
    root = Path(tree["machine"]["results"])
    return run_directory(root, tree["scale"]["name"], tree["study"], job["arm"], tree["seed"])


def _tell(job: jobs.Job, before: dict[str, Any] | None) -> None:
    tree, record = job["tree"], read_run_json(_place(job))
    with progress.job(tree["study"], job["arm"], tree["seed"], tree["steps"]) as report:
        if record is None:
            logs = Path(tree["machine"]["results"], ".submitit")
            report.end("failed", f"no record of its end yet, see {logs}; the same command goes on")
        elif before is not None and before["status"] != "failed":
            report.end("skipped", f"already {before['status']}")
        else:
            report.end(record["status"], record["reason"] or "", record["steps_done"])

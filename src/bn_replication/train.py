"""Train one network, or sweep over many: the command line.

``python -m bn_replication.train experiment=fig1_mnist norm=batch seed=0`` carries out one run,
``python -m bn_replication.train -m experiment=fig1_mnist`` a whole study, several runs at a time. The exit code is 0 if
every run ended (a diverged one has), 1 if one failed, 2 if one was refused for a mistake in what was asked.
Torch is imported by the jobs, not here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bn_replication import jobs, launch, progress
from bn_replication.errors import UNWRITABLE, UserError, nearest, no_room
from bn_replication.schema import known_keys, validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# In a list of defaults, a group's choice by the scale: ${at_paper:${scale},imagenet,cifar10}. Replaced, as this file
# is imported by its name besides being run.
OmegaConf.register_new_resolver(
    "at_paper", lambda scale, there, elsewhere: there if scale == "paper" else elsewhere, replace=True
)
# What is left of the rate after so many steps of 32 images of ImageNet, as GoogLeNet decays it: x0.96 every 8 epochs.
OmegaConf.register_new_resolver(
    "googlenet_decay", lambda steps: 0.96 ** (int(steps) * 32 / 1_281_167 / 8), replace=True
)
# Overrides that an arm is not named by: those that say where it stands, though what is below them (scale.width) makes
# another arm; and those that change no number, with all that is below them.
_WHERE = {"seed", "scale", "experiment", "study"}
_CHANGE_NOTHING = ("wandb", "machine", "hydra", "data.root", "data.source")


# Of a sweep: its jobs, until all are composed. None: jobs are carried out as they come, here or where Slurm says.
_sweep: list[jobs.Job] | None = None
# Seconds for which a process that has failed because another did, or as another did, leaves the word to that one.
_PATIENCE = 10.0
_LONGEST = 255  # bytes, of a folder's name
# How Hydra's complaint of a group that is given a number or a mapping (variant=0) begins.
_NO_NAME = "Config group override"
_QUOTES = "quotes that survive the shell around a value with spaces, commas or letters beyond ASCII: 'key=\"value\"'"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def job(tree: DictConfig) -> None:
    """Carry out one run, or keep it for when all of its sweep are composed."""
    _composed(tree)  # by its name: a launcher that pickles this function takes along the values it refers to


def _composed(tree: DictConfig) -> None:
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    container = resolved(tree)
    arm = arm_of(tree, overrides, settings.sweeper.params or {})
    if (length := len(arm.encode())) > _LONGEST:
        raise UserError(
            f"found overrides that make a folder's name of {length} bytes, expected {_LONGEST} at most; "
            "put those that all runs share into a file of configs/experiment/"
        )
    if _sweep is None and _replicas() > 1:
        parent = os.getppid()  # torchrun; should it be killed, no one else ends its processes
        _carry_out(container, arm, overrides, lambda: jobs.stop_when_left(parent))
    elif _sweep is None:
        _carry_out(container, arm, overrides)
    else:
        place = os.environ.get(progress.VARIABLE)
        _sweep.append({"tree": container, "arm": arm, "overrides": overrides, "progress": place})


def _carry_out(
    tree: dict[str, Any], arm: str, overrides: list[str], each_step: Callable[[], object] = lambda: None
) -> None:
    """Carry out one run; what becomes of it is told by its progress file, so that no run ends its siblings."""
    try:
        try:
            cfg = validate(tree)
        except UserError:
            with progress.job("refused", " ".join(overrides), 0, 0):
                raise
        with progress.job(cfg.study, arm, cfg.seed, cfg.steps) as report:
            from bn_replication.distributed import Lost  # torch comes with it
            from bn_replication.runner import Interrupted, run

            def watched(step: int, accuracy: float | None = None) -> None:
                report(step, accuracy)
                each_step()

            try:
                outcome = run(cfg, arm, watched)
            except (Interrupted, KeyboardInterrupt):
                report.end("failed", "stopped when asked to; what it had done is saved, the same command goes on")
                raise KeyboardInterrupt from None
            except Lost as error:
                report.end("failed", f"{error}; the same command goes on from the last checkpoint")
                time.sleep(_PATIENCE)  # torchrun ends this process meanwhile, and names the one that failed first
                return
            report.end(outcome.status, outcome.message)
    except UserError as error:
        _after_rank_0(error)
        if progress.VARIABLE not in os.environ:  # nobody reads a progress file: a launcher's job, alone in its process
            raise
    except Exception:
        if progress.VARIABLE not in os.environ:
            raise
        traceback.print_exc()  # a defect of ours: whoever mends it needs more than a line


def _replicas() -> int:
    """Return how many processes torchrun started for this run; 1 without it."""
    number = os.environ.get("WORLD_SIZE", "1")
    return int(number) if number.isdecimal() else 1  # anything else is refused with the configuration


def _rank() -> int:
    """Return which of those processes this is; 0 where it is alone."""
    return int(os.environ.get("RANK", "0")) if _replicas() > 1 else 0


def _after_rank_0(error: Exception) -> None:
    """Leave a refusal to rank 0, which most often has the same and whose end is this one's; then say it after all."""
    if not _rank():
        return
    with contextlib.suppress(KeyboardInterrupt):  # torchrun, ending this process as well
        time.sleep(_PATIENCE)
        print(f"error: rank {_rank()}: {explain(error)}", file=sys.stderr)


def _in_own_process(asked: jobs.Job) -> None:
    os.environ[progress.VARIABLE] = asked["progress"]
    _carry_out(asked["tree"], asked["arm"], asked["overrides"], lambda: jobs.stop_when_left(asked["parent"]))


def _import_torch() -> None:
    import bn_replication.runner  # noqa: F401  # each job then finds it loaded


def arm_of(tree: DictConfig, overrides: list[str], swept: Any) -> str:
    """Return an arm's name: every axis of its study and every override, ``key=value``, in alphabetical order."""
    given = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in overrides)}
    named = {str(key) for key in swept} | given.keys()
    axes = sorted(key for key in named - _WHERE if not any(f"{key}.".startswith(f"{no}.") for no in _CHANGE_NOTHING))

    def value_of(key: str) -> Any:
        if key == "setting":  # which sets other groups, and has no place of its own
            return given.get(key)
        value = OmegaConf.select(tree, key.rpartition("@")[2])  # norm@last_norm=... stands at last_norm
        return value.name if isinstance(value, DictConfig) and "name" in value else value

    return ",".join(f"{key}={value_of(key)}" for key in axes).replace("/", "_") or "default"


def resolved(tree: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(container, dict)
    # The names of these groups have done their work once the tree is composed.
    return {str(key): value for key, value in container.items() if key not in ("experiment", "setting")}


def main() -> int:
    """Run what the command line asks for and return its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra's own errors reach us, to be said in one line
    asks_only = any(word in sys.argv for word in ("--help", "--hydra-help", "--info", "-i", "--cfg", "-c", "-sc"))
    try:
        if asks_only or any(word.startswith("--shell-completion") for word in sys.argv):
            job()
            return 0
        for number in jobs.asking():
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C
        several = bool({"-m", "--multirun"} & set(sys.argv))
        if "," in (studies := _assigned().get("experiment", "")):
            raise UserError(
                f"found experiment={studies}, expected one study, as each has its own sweep; run them in turn"
            )
        if several and _replicas() > 1:
            raise UserError("found -m under torchrun, expected one run; sweep without torchrun, or start it once a run")
        # Forked first, as the display is a thread.
        elsewhere = several and launch.asked(sys.argv) is not None
        server = jobs.Server(_import_torch, _in_own_process) if several and not elsewhere else None
        with open(os.devnull, "w") as nowhere, progress.Sweep(nowhere if _rank() else sys.stderr) as sweep:
            if elsewhere:
                with launch.left_out():
                    queue = _queue(sweep)
                launch.carry_out(queue, job)
            elif server is None:
                job()
            else:
                with server:
                    _carry_out_sweep(server, sweep)
        return sweep.exit_code()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        return _refused(error)
    except ValueError as error:
        if not str(error).startswith(_NO_NAME):
            raise
        return _refused(error)
    except OSError as error:
        # Hydra makes the folder of the records, and writes a file into it, before anything of ours can; a full disk has
        # no name. Any other is no mistake of the user's.
        place = Path(_assigned().get("machine.results", "results/runs").strip("'\"")).absolute()
        at = Path(error.filename or place).absolute()
        nameless = error.filename is None and error.errno not in UNWRITABLE
        if nameless or not (at.is_relative_to(place) or place.is_relative_to(at)):
            raise
        return _refused(no_room(place if at.is_relative_to(place) else at, error.strerror))
    except KeyboardInterrupt:
        return 130


def _refused(error: Exception) -> int:
    """Tell a mistake of the user's in a line, once however many replicas there are, and return its exit code."""
    if _rank():
        _after_rank_0(error)
    else:
        print(f"error: {explain(error)}", file=sys.stderr)
    return 2


def _carry_out_sweep(server: jobs.Server, sweep: progress.Sweep) -> None:
    """Compose every job of a sweep and carry them out."""
    queue = _queue(sweep)
    asked = {each["tree"]["machine"]["jobs"] for each in queue}  # not validated yet: each job refuses what is no number
    server.carry_out(queue, min((n for n in asked if isinstance(n, int) and n > 0), default=jobs.cores()))


def _queue(sweep: progress.Sweep) -> list[jobs.Job]:
    """Compose every job of a sweep, so that a mistake in any is told before one starts."""
    global _sweep
    _sweep = []
    job()
    queue, _sweep = _sweep, None
    if not queue:
        raise UserError("found no run in the sweep, expected one at least; give every axis a value, seed=0 say")
    sweep.total = len(queue)
    return queue


def explain(error: BaseException) -> str:
    """Return a complaint of Hydra's in one line, with the nearest valid name where a name is what was wrong."""
    text = " ".join(str(error).split())
    if not text and error.__cause__ is not None:  # Hydra's "composition failed" leaves the reason to its cause
        return explain(error.__cause__)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if match := re.search(r"Ambiguous value for argument '(.+)' 1\. To use it as a list", text):
        return f"found {match[1]!r}, expected one value, or -m to sweep over several, or {_QUOTES}"
    if match := re.search(r"Interpolation key 'tuned\.([^']+)' not found", text):
        return (
            f"found no tuned.{match[1]}, expected the rate that a sweep has chosen; run the one that the study's file "
            "in configs/experiment/ names and put its answer there"
        )
    if match := re.search(r"(?:Key '([^']+)' is not in struct|Could not override '([^']+)')", text):
        key = match[2] or match[1]
        given = _assigned()
        if key in given and _files_of(key):  # a group, given values where it takes a name
            return f"found {key}={given[key]}, {_expected_of(key, given[key])}"
        group = key.partition(".")[0]
        if elsewhere := _files_with(key):
            chosen = f"{group}={given[group]}" if group in given else f"the {group} that is chosen"
            return (
                f"found key '{key}', which comes with {group}={', '.join(elsewhere)}, expected one of {chosen}; "
                "mend it on the command line or in configs/experiment/"
            )
        return (
            f"found unknown key '{key}', expected one of configs/train.yaml{nearest(key, _all_keys())}; "
            "mend it on the command line or in configs/experiment/"
        )
    if match := re.search(r"GrammarParseError raised while resolving.* full_key: (\S+)", text):
        return f"found no readable value for {match[1]}, expected a number; mend it, or JOBS, in the environment"
    if match := re.search(r"Could not (?:find|load) 'hydra/launcher/(submitit_\w+)'", text):
        return f"found no launcher {match[1]}, expected hydra-submitit-launcher; pip install -e '.[slurm]' has it"
    if match := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        return f"found {match[1]}={match[2]}, {_expected_of(match[1], match[2])}"
    if text.startswith(_NO_NAME):  # says neither which group nor what it was given
        for key, value in _assigned().items():
            if not key:
                return _unreadable(f"={value}")
            if (names := _files_of(key)) and value not in names:
                return f"found {key}={value!r}, {_expected_of(key, value)}"
    return text


def _unreadable(word: str) -> str:
    return f"found {word!r}, expected key=value, with {_QUOTES}; mend it on the command line or in configs/experiment/"


def _assigned() -> dict[str, str]:
    """Return what the command line sets, word by word."""
    words = (word.lstrip("+~").partition("=") for word in sys.argv[1:])
    return {key: value for key, given, value in words if given}


def _files_of(group: str) -> list[str]:
    """Return the names that ``group`` (norm, or norm@last_norm) may be given; none if it is no group of configs/."""
    folder = CONFIGS / group.partition("@")[0]
    return sorted(path.stem for path in folder.glob("*.yaml")) if group else []


def _files_with(key: str) -> list[str]:
    """Return the names that a group may be given for there to be ``key`` (norm.groups), one in the group."""
    group, _, inner = key.partition(".")
    return [name for name in _files_of(group) if inner in list(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))]


def _expected_of(group: str, value: str) -> str:
    names = _files_of(group)
    return f"expected one of {', '.join(names)}{nearest(value, names)}; mend it on the command line"


def _all_keys() -> list[str]:
    """Return every key an override may name: the schema's, its components' and the groups of configs/."""
    keys = set(known_keys())
    for path in CONFIGS.glob("*/*.yaml"):
        group = path.parent.name
        keys |= {group} | {f"{group}.{key}" for key in OmegaConf.load(path) if group in ("model", "norm")}
    return sorted(keys)


if __name__ == "__main__":
    # By its importable name, so that the workers of a sweep find it.
    from bn_replication.train import main as run_main

    exit_code = run_main()
    if _replicas() > 1:
        # What torch would tidy up at an exit waits, minutes, for processes and a torchrun that may be gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)

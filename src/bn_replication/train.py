"""Train one network, or sweep over many: the command line.

``python -m bn_replication.train experiment=fig1_mnist norm=batch seed=0`` carries out one run,
``python -m bn_replication.train -m experiment=fig1_mnist`` a whole study, several runs at a time. The exit code is 0 if
every run ended (a diverged one has), 1 if one failed, 2 if one was refused for a mistake in what was asked.
Torch is imported by the jobs, not here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bn_replication import progress
from bn_replication.errors import UserError, nearest
from bn_replication.schema import known_keys, validate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Overrides that an arm is not named by: they say which run of it this is, or nothing that changes a number.
_NOT_IN_ARM = ("seed", "scale", "experiment", "study", "tuned", "wandb", "machine", "hydra", "data.root", "data.source")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def job(tree: DictConfig) -> None:
    """Carry out one run; what becomes of it is told by its progress file, so that no run ends its siblings."""
    try:
        _carry_out(tree)
    except UserError:
        pass
    except Exception:
        traceback.print_exc()  # a defect of ours: whoever mends it needs more than a line


def _carry_out(tree: DictConfig) -> None:
    settings = HydraConfig.get()
    overrides = list(settings.overrides.task)
    try:
        cfg = validate(resolved(tree))
    except UserError:
        with progress.job("refused", " ".join(overrides), 0, 0):
            raise
    arm = arm_of(tree, overrides, settings.sweeper.params or {})
    with progress.job(cfg.study, arm, cfg.seed, cfg.steps) as report:
        from bn_replication.runner import Interrupted, run  # torch comes with it

        try:
            outcome = run(cfg, arm, report)
        except Interrupted:
            report.end("failed", "stopped when asked to; its checkpoint is saved, the same command goes on")
            raise KeyboardInterrupt from None
        report.end(outcome.status, outcome.message)


def arm_of(tree: DictConfig, overrides: list[str], swept: Any) -> str:
    """Return an arm's name: every axis of its study and every override, ``key=value``, in alphabetical order."""
    keys = {str(key) for key in swept} | {text.lstrip("+~").partition("=")[0] for text in overrides}
    axes = sorted(key for key in keys if not any(f"{key}.".startswith(f"{no}.") for no in _NOT_IN_ARM))

    def value_of(key: str) -> Any:
        value = OmegaConf.select(tree, key)
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
        with progress.Sweep(stream=sys.stderr) as sweep:
            job()
        return sweep.exit_code()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def explain(error: Exception) -> str:
    """Return a complaint of Hydra's in one line, with the nearest valid name where a name is what was wrong."""
    text = " ".join(str(error).split())
    if match := re.search(r"(?:Key '([^']+)' is not in struct|Could not override '([^']+)')", text):
        key = match[2] or match[1]
        return (
            f"found unknown key '{key}', expected one of configs/train.yaml{nearest(key, _all_keys())}; "
            "mend it on the command line or in configs/experiment/"
        )
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        names = [path.stem for path in (CONFIGS / match[1]).glob("*.yaml")]
        return (
            f"found {match[1]}={match[2]}, expected one of {', '.join(sorted(names))}"
            f"{nearest(match[2], names)}; mend it on the command line"
        )
    return text


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

    sys.exit(run_main())

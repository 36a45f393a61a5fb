"""Shared ground of the tests: a configuration composed as the command line would, on the shipped real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from bn_replication.schema import Config
from bn_replication.train import CONFIGS, arm_of, resolved, validate

torch.set_num_threads(1)

Compose = Callable[..., tuple[Config, str]]


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    """Return a function from overrides to a smoke-scale configuration below ``tmp_path`` and its arm."""

    def function(*overrides: str) -> tuple[Config, str]:
        fixed = ["scale=smoke", f"machine.results={tmp_path / 'runs'}", "wandb=disabled"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            tree = compose("train", overrides=[*fixed, *overrides])
        return validate(resolved(tree)), arm_of(tree, list(overrides), {})

    return function

"""Shared ground of the tests: a configuration composed as the command line would, on the shipped real images."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import DictConfig

from bn_replication.provenance import environment
from bn_replication.schema import Config
from bn_replication.train import CONFIGS, arm_of, resolved, validate

torch.set_num_threads(1)

# By hand every run searches anew; where CI is set (as .ci/run does) the same examples are tried each time, so that a
# change fails for what it changed. No deadline: how long an example takes is the machine's affair. A failure prints the
# example and a line, `@reproduce_failure(...)`, that tries it again when put above the test.
settings.register_profile("ours", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ours")

Compose = Callable[..., tuple[Config, str]]


@contextlib.contextmanager
def no_room(size: int = 100) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes: to whoever writes, the disk is as good as full."""
    environment("cpu", 1)  # which asks git, once: within the limit it would be killed and leave its lock behind
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@functools.cache
def tree_of(overrides: tuple[str, ...]) -> DictConfig:
    """Compose once a process: a fifth of a second each time."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.fixture
def composed(tmp_path: Path) -> Compose:
    """Return a function from overrides to a smoke-scale configuration below ``tmp_path`` and its arm."""

    def function(*overrides: str) -> tuple[Config, str]:
        tree = copy.deepcopy(tree_of(("scale=smoke", "wandb=disabled", *overrides)))
        if not any(override.startswith("machine.results=") for override in overrides):
            tree.machine.results = str(tmp_path / "runs")
        return validate(resolved(tree)), arm_of(tree, list(overrides), {})

    return function

"""Whatever a configuration is given, it is taken or refused in one line that names it; never anything else."""

from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import tree_of
from tests.faults.processes import ended, forked

from bn_replication import build, checkpoint, records
from bn_replication.errors import UserError, nearest
from bn_replication.runner import STARTED
from bn_replication.schema import Config, known_keys, validate
from bn_replication.train import main, resolved

QUICK = settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(QUICK, max_examples=60)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 200), st.floats(), st.text(max_size=3), st.booleans()), max_size=3),
    st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4)), max_size=2),
    # What is rare by chance: numbers that no float holds, line breaks, and what a terminal would obey.
    st.sampled_from([10**400, -(10**400), 2**63, [10**400], "a\nb", "a\0b", "\x1b[2J", {"a\nb": 1}, {"\u2028": "x"}]),
)


def _composed(*overrides: str) -> dict[str, Any]:
    return resolved(tree_of(("scale=smoke", "wandb=disabled", *overrides)))


TREES = {"mnist": _composed("setting=mnist"), "inception": _composed("setting=inception", "variant=bn_x5")}
TRACES = (records.RUN, records.CURVES, STARTED)  # of a run that has begun
KEYS = [key for key in known_keys() if not key.startswith("scale.by_scale")]
LEAVES = [key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)]


def put(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return ``tree`` with ``value`` at the dotted ``key``."""
    tree = copy.deepcopy(tree)
    *above, last = key.split(".")
    inner = tree
    for part in above:
        inner = inner[part]
    inner[last] = value
    return tree


def taken(tree: dict[str, Any], *named: str) -> Config | None:
    """Return the configuration, or ``None`` if it was refused as it should be: in one line, naming all of ``named``."""
    try:
        return validate(tree)
    except UserError as error:
        complaint = str(error)
    told(complaint, *named)
    return None


def told(complaint: str, *named: str) -> None:
    assert complaint.isprintable()
    assert all(name in complaint for name in ("expected", *named)), complaint


@QUICK
@given(st.sampled_from(KEYS), JUNK, st.sampled_from(sorted(TREES)))
def test_any_value_anywhere_is_taken_or_refused_by_name(key: str, value: Any, tree: str) -> None:
    cfg = taken(put(TREES[tree], key, value), key.partition(".")[0])
    if cfg is None:
        return
    inner: Any = cfg.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        inner = inner[part]
    # What is taken is what was given: nothing but 3 is made of 3.0, of "3", and never a number of a truth.
    if isinstance(value, bool):
        assert isinstance(inner, bool)
    elif isinstance(value, int | float) and isinstance(inner, int | float) and not isinstance(inner, bool):
        # A real number is kept as a float, which above 2**53 not every whole one is.
        assert float(inner) == float(value)
        assert math.isfinite(inner)


@FEW
@given(st.sampled_from(LEAVES), st.data())
def test_a_slip_of_the_finger_is_told_the_nearest_name(key: str, data: st.DataObject) -> None:
    """One letter of a key is dropped, doubled or replaced."""
    last = key.rpartition(".")[2]
    where = data.draw(st.integers(0, len(last) - 1))
    letter = data.draw(st.sampled_from(["", last[where] * 2, "q"]))
    slip = key[: len(key) - len(last)] + last[:where] + letter + last[where + 1 :]
    if slip in KEYS or slip.endswith("_target_") or slip.startswith(("model.", "norm.", "tuned.")):
        return
    tree = put(TREES["mnist"], key, None)
    *above, name = slip.split(".")
    inner = tree
    for part in above:
        inner = inner[part]
    inner[name] = 1
    assert taken(tree, f"unknown key '{slip}'") is None
    if len(last) > 4:  # of a short one too little is left to tell by
        assert nearest(slip, known_keys()).startswith("; did you mean '")


@FEW
@given(st.sampled_from(LEAVES))
def test_a_missing_key_is_named(key: str) -> None:
    tree = copy.deepcopy(TREES["mnist"])
    *above, last = key.split(".")
    inner = tree
    for part in above:
        inner = inner[part]
    inner.pop(last, None)  # what is off by default stands in no file
    cfg = taken(tree, key)
    if cfg is None:
        return
    # Only what a section that is off by default holds may be left out.
    section: Any = Config
    for part in above:
        section = section.model_fields[part].annotation
    assert not section.model_fields[last].is_required()


ARGUMENTS = {
    (group, tree): sorted(set(TREES[tree][group]) - {"name", "_target_", "_partial_"})
    for group, tree in (("model", "inception"), ("model", "mnist"), ("norm", "mnist"))
}


@FEW
@given(st.data(), JUNK)
def test_arguments_of_norms_and_networks_are_held_to_their_signatures_before_data(
    data: st.DataObject, value: Any
) -> None:
    group, tree = data.draw(st.sampled_from(sorted(ARGUMENTS)))
    key = data.draw(st.sampled_from([*ARGUMENTS[group, tree], "no_such_key", "generator", "a\nb"]))
    if key == "width" and isinstance(value, int | float) and value > 1:
        value = 1 / value  # a net of any width is a net; that it fits into memory is another matter
    cfg = taken(put(TREES[tree], f"{group}.{key}", value))
    assert cfg is not None  # components are open in the schema
    try:
        build.model(cfg.model, build.norm(cfg.norm))
    except UserError as error:
        told(str(error), key.replace("\n", "\\n"))
        return
    assert key not in ("no_such_key", "generator", "a\nb")


@pytest.mark.parametrize("norm", ["batch", "batch_no_affine", "detached", "per_activation", "reference"])
def test_pairs_that_cannot_be_are_refused(norm: str) -> None:
    """A batch of one has no variance; this suite's CPUs are slow or wrong in bfloat16."""
    tree = _composed("setting=mnist", f"norm={norm}")
    assert taken(put(tree, "batch_size", 1), "batch_size of 2 or more", norm) is None
    assert taken(put(tree, "precision", "bfloat16"), "precision=float32 on the CPU") is None
    assert taken(put(put(tree, "precision", "bfloat16"), "machine.device", "cuda")) is not None


WORDS = st.one_of(st.text("{}[]()'\"$:,=\\ \n\t.-+~@/0123456789eEnaifx", max_size=10), st.text(max_size=6))


@pytest.mark.slow
@settings(QUICK, max_examples=10)
@given(st.sampled_from(KEYS), WORDS)
def test_whatever_stands_on_the_command_line_it_ends_with_code_2_before_data(key: str, word: str) -> None:
    """There is no data: a value that may be is refused for that, any other for itself, and none by a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        nowhere = [f"{name}={folder}/none" for name in ("data.root", "data.source")]
        fixed = ["setting=mnist", "scale=laptop", "wandb=disabled", *nowhere, f"machine.results={folder}/runs"]

        def typed() -> None:
            said = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.environ["BN_DATA"] = f"{folder}/none"
            sys.argv = ["train", f"{key}={word}".replace("\0", ""), *fixed]
            os._exit(main())

        with forked(typed) as pid:
            code = ended(pid, 120)
        said = Path(folder, "said").read_text(errors="replace")
        assert (code, "Traceback" in said) == (2, False), said
        assert not [path for path in Path(folder).rglob("*") if path.name in (*TRACES, checkpoint.CURRENT)]

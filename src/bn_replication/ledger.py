"""The ledger of the paper's claims: ``experiments/claims.yaml``, one rule a claim, written before the runs.

The file is read into :class:`Entry` objects and refused at the first key it should not have. Runs store the
digest of the entries that will judge them, so a rule cannot change unseen. Neither torch nor scipy is
imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bn_replication.errors import UserError, nearest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = EXPERIMENTS.parent / "configs" / "experiment"
LEDGER, PAPER, AMBIGUITIES = (EXPERIMENTS / f"{name}.yaml" for name in ("claims", "paper", "ambiguities"))

SCALES = ("smoke", "laptop", "gpu", "paper")
JUDGED = ("laptop", "gpu", "paper")  # at the smoke scale a few steps see a few hundred images: no evidence
ALPHA = 0.05  # the chance of any wrong verdict among the empirical claims of one scale
# Part of every digest: raise it when a metric, an interval or the verdict's rule comes to mean something
# else, and say why below, as an amendment of all rules: version -> day, reason.
JUDGE = 2
JUDGE_AMENDED = {
    2: (
        "2026-11-30",
        "where runs are censored, Student's interval took the scatter of where their budgets ended for that of the "
        "effects, and was too narrow; it reaches at least as far as the sign test's there",
    )
}

Scalar = bool | float | str
Share = Annotated[float, Field(gt=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _by_scale(value: Any) -> Any:
    """Spell a plain value as ``{default: value}``; refuse scales there are none of."""
    table = value if isinstance(value, Mapping) else {"default": value}
    for key in table:
        if key not in ("default", *SCALES):
            raise ValueError(f"unknown scale '{key}', expected default or one of {SCALES}{nearest(str(key), SCALES)}")
    return dict(table)


def at_scale(table: Mapping[str, Any], scale: str) -> Any:
    """Return the value for ``scale``, else the default, else ``None``."""
    return table.get(scale, table.get("default"))


class Best(_Strict):
    """``best`` of a curve's column."""

    name: Literal["best"]
    of: str = "test_accuracy"


class Final(_Strict):
    name: Literal["final"]
    of: str = "test_accuracy"
    tail: Annotated[float, Field(gt=0, le=1)] = 0.1
    chance: dict[str, float]
    _chance = field_validator("chance", mode="before")(_by_scale)


class StepsTo(_Strict):
    """``steps_to`` the best of the run of the same seed that ``target`` selects, the control's if not
    given."""

    name: Literal["steps_to"]
    of: str = "test_accuracy"
    target: dict[str, list[Scalar]] | None = None
    _target = field_validator("target", mode="before")(lambda value: _selection(value))


class AgainstChance(_Strict):
    name: Literal["fails", "at_chance"]
    of: str = "test_accuracy"
    chance: dict[str, float]
    held_out: dict[str, int]
    _tables = field_validator("chance", "held_out", mode="before")(_by_scale)


class Drift(_Strict):
    """``drift`` of the last layer whose units were recorded."""

    name: Literal["drift"]


class GapAtLoss(_Strict):
    """``gap_at`` the lowest training loss that both arms reach; ``train`` is the column that holds it.

    By default that of a fixed sample of training images in evaluation mode, undistorted, as the held-out loss is
    taken: the running mean of the batches would lag behind, and dropout and distortion would add to it.
    """

    name: Literal["gap_at_equal_loss"]
    train: str = "fit_loss"


class Grid(_Strict):
    """A number for a whole grid of runs of one seed; a setting is the product of the keys in ``grid``."""

    name: Literal["usable_width", "grid_spread"]
    of: str = "test_accuracy"
    grid: list[str]
    keep: Share | None = None
    tail: Annotated[float, Field(gt=0, le=1)] = 0.1
    chance: dict[str, float]
    _chance = field_validator("chance", mode="before")(_by_scale)

    @model_validator(mode="after")
    def _width_needs_keep(self) -> Grid:
        if (self.keep is None) == (self.name == "usable_width"):
            raise ValueError("keep for usable_width, and only for it")
        return self


class Summary(_Strict):
    """A number the run itself put into its summary.

    ``against`` names another number of the same run to hold it against, which then stands in the control's place:
    for what is measured twice on the same weights.
    """

    name: Literal["summary"]
    key: str
    against: str | None = None


Metric = Annotated[
    Best | Final | StepsTo | AgainstChance | Drift | GapAtLoss | Grid | Summary, Field(discriminator="name")
]


class Edges(_Strict):
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _some_and_ordered(self) -> Edges:
        low, high = self.above, self.below
        if (low is None and high is None) or (low is not None and high is not None and low >= high):
            raise ValueError("above, below, or both with above < below")
        return self


class Amendment(_Strict):
    """A rule changed after runs had begun: the digest it replaces ("none": there was no rule), when and
    why."""

    replaces: str
    on: str
    why: str


def _selection(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: item if isinstance(item, list) else [item] for key, item in value.items()}


class Entry(_Strict):
    """One claim: where it stands, what it says, and the rule that decides it."""

    id: str
    where: str
    says: str
    paper: str | None = None
    why: str
    amendments: list[Amendment] = []

    kind: Literal["exact", "empirical"]
    study: str
    metric: Metric
    control: dict[str, list[Scalar]] | None = None
    treatment: dict[str, list[Scalar]]
    effect: Literal["ratio", "difference", "share", "value"]
    bounds: dict[str, Edges]

    @property
    def of_paper(self) -> bool:
        """Whether the claim is the paper's own, and not of a later publication."""
        return self.where.startswith("Section")

    _arms = field_validator("control", "treatment", mode="before")(_selection)

    @field_validator("bounds", mode="before")
    @classmethod
    def _bounds_by_scale(cls, value: Any) -> Any:
        plain = isinstance(value, Mapping) and not set(value) & {"default", *SCALES}
        return _by_scale({"default": value} if plain else value)

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        if (self.kind == "exact") != (self.effect == "value"):
            raise ValueError("effect: value for exact claims, and only for them")
        if self.kind == "exact" and not isinstance(self.metric, Summary):
            raise ValueError("metric: summary for exact claims")
        if isinstance(self.metric, GapAtLoss) and self.control is None:
            raise ValueError("a control, whose training loss is to be equal")
        if (self.effect == "share") != isinstance(self.metric, AgainstChance):
            raise ValueError("effect: share for the metrics fails and at_chance, and only for them")
        inside = isinstance(self.metric, Summary) and self.metric.against is not None
        if self.effect in ("ratio", "difference") and (self.control is None) != inside:
            raise ValueError("a control, as the effect compares two arms (or metric.against, and then no control)")
        edges = [edge for e in self.bounds.values() for edge in (e.above, e.below) if edge is not None]
        if self.effect == "ratio" and any(edge <= 0 for edge in edges):
            raise ValueError("bounds above 0, as a ratio's are")
        return self

    def bounds_at(self, scale: str) -> tuple[float, float] | None:
        """Return the bounds on the effect in its own unit, or ``None`` if the ledger sets none at
        ``scale``."""
        edges: Edges | None = at_scale(self.bounds, scale)
        if edges is None:
            return None
        low = -math.inf if edges.above is None else edges.above
        return low, math.inf if edges.below is None else edges.below


_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where there is one: a sixth of the time


class _UniqueKeys(_SAFE):
    """YAML that refuses a key given twice: the second would silently replace the first rule."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"found '{key}' twice, expected it once; mend it at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; a missing, broken or doubled one is a :class:`UserError`."""
    try:
        tree = yaml.load(path.read_text(), _UniqueKeys)  # a SafeLoader: no object of any class is built
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"found no readable YAML ({' '.join(str(error).split())}); mend it in {path}") from None
    except UserError as error:
        raise UserError(f"{error} of {path}") from None
    if not isinstance(tree, dict):
        raise UserError(f"found {type(tree).__name__}, expected a mapping; mend it in {path}")
    return tree


def load_ledger(path: Path = LEDGER) -> dict[str, Entry]:
    """Return the claims by id, in the file's order."""
    ledger = {}
    for name, body in read_yaml(path).items():
        try:
            ledger[name] = Entry.model_validate({**body, "id": name} if isinstance(body, dict) else body)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise UserError(f"claim '{name}': {_explain(fault)}; mend it in {path}") from None
    if path == LEDGER:  # one elsewhere may judge studies that are elsewhere
        known = swept()
        for name, entry in ledger.items():
            if entry.kind == "empirical" and entry.study not in known:
                expected = f"one of configs/experiment/{nearest(entry.study, known)}"
                raise UserError(f"claim '{name}': found study '{entry.study}', expected {expected}; mend it in {path}")
    return ledger


def swept() -> list[str]:
    """Return the name of every study that trains: one a file of configs/experiment."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def _explain(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    found = repr(fault["input"])[:60]
    if fault["type"] == "extra_forbidden":
        models = (Entry, Edges, Amendment, Best, Final, StepsTo, AgainstChance, Grid, Summary)
        known = {name for model in models for name in model.model_fields}
        return f"found unknown key '{key}'{nearest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"found no '{key}', expected one"
    if fault["type"] == "union_tag_invalid":
        names = fault["ctx"]["expected_tags"].replace("'", "")
        found_name = str(fault["ctx"]["tag"])
        return f"{key}: found '{found_name}', expected one of {names}{nearest(found_name, names.split(', '))}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key or 'the entry'}: found {found}, expected {message}"


def entry_digest(entry: Entry, version: int = JUDGE) -> str:
    """Return the SHA-256 of all that decides a claim: its rule, the judge's ``version`` and alpha.

    Prose (where, says, paper, why) and amendments are left out, and defaults are written out, so that only
    a change of the rule changes the digest.
    """
    rule = entry.model_dump(
        mode="json",
        exclude_none=True,
        include={"id", "kind", "study", "metric", "control", "treatment", "effect", "bounds"},
    )
    text = json.dumps(rule | {"judge": version, "alpha": ALPHA}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digests_for_study(study: str, path: Path = LEDGER) -> dict[str, str]:
    """Return ``{claim id: digest}`` for the claims that ``study`` decides: what a run stores when it
    starts."""
    return {name: entry_digest(entry) for name, entry in load_ledger(path).items() if entry.study == study}

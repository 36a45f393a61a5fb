"""What a run may be told: every key, its type and its range, checked before anything else is done.

Hydra composes YAML and the command line into one tree; :func:`validate` turns that tree into a frozen
:class:`Config` or into one line that names the key, what was found, what was expected and the nearest valid
name. Torch is not imported here, so that ``--help`` and the reading half stay quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bn_replication.errors import UserError, nearest


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which Python, and so pydantic, would count with: seed=true is a slip
        raise ValueError(f"a number, found {value}")
    return value


def _no_nul(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:  # which no file's name may hold
        raise ValueError(f"a path, found {value!r}")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool), Field(lt=2**31)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]
Few = Annotated[Whole, Field(ge=1, le=100_000)]  # of what is kept in memory whole
Place = Annotated[Path, BeforeValidator(_no_nul)]
# One path component: letters, digits and what an override needs; no slash, and no dot in front.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_=+,-][A-Za-z0-9_.=+,-]*$", max_length=200)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Component(BaseModel):
    """A class and its arguments, which are held against the class's own signature when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)
    name: Name
    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Scale(Section):
    """How large a study is here; studies refer to these values, nothing else reads them."""

    name: Literal["smoke", "laptop", "gpu", "paper"]
    sample: Literal["", "_sample"]
    seeds: str
    tune_seeds: str
    mlp_steps: Count
    inception_steps: Count
    short_steps: Count
    mlp_short_steps: Count
    subset: Count
    width: Positive
    image_size: Count
    base_rate: Positive
    evaluations: Count
    examples: Annotated[Whole, Field(ge=0)]
    ensemble_examples: Annotated[Whole, Field(ge=0)]
    checkpoint_every: Count


class Data(Section):
    name: Name
    root: Place
    source: Place | None
    split: Literal["final", "tune"]
    input: Literal["binary", "unit", "standardize", "centered", "decorrelated", "whitened"]
    subset: Count | None
    order: Literal["full", "within_shard", "fixed"]
    shards: Count
    size: Count | None = None  # of the squares cut from images of many sizes
    images: Count | None = None  # how many training images must be there


class Augment(Section):
    name: Name
    flip: bool
    crop: Annotated[Whole, Field(ge=0)]
    brightness: Fraction
    contrast: Fraction
    saturation: Fraction
    hue: Fraction
    strength: NonNegative
    area: Annotated[Real, Field(gt=0, le=1)] | None = None  # least share of an image that a random crop takes
    aspect: Annotated[Real, Field(ge=1, le=100)] | None = None  # of its sides, at most, either way

    @model_validator(mode="after")
    def _crops(self) -> Augment:
        if (self.area is None) != (self.aspect is None):
            raise ValueError(f"area and aspect, or neither, found area={self.area} and aspect={self.aspect}")
        return self

    @property
    def changes_anything(self) -> bool:
        """Whether an image of its own size is changed; random crops are taken before."""
        reach = self.brightness + self.contrast + self.saturation + self.hue
        return self.flip or self.crop > 0 or reach * self.strength > 0


class Optimizer(Section):
    """Stochastic gradient descent; the rate is ``rate * multiple`` times the schedule's multiplier."""

    name: Name
    rate: Positive
    multiple: Positive
    momentum: Fraction
    nesterov: bool
    l2: NonNegative
    l2_multiple: NonNegative
    l2_on_norm: bool


class Schedule(Section):
    name: Name
    total: Annotated[Real, Field(gt=0, le=1)]
    speed: NonNegative


class Histogram(Section):
    low: Real
    high: Real
    bins: Few

    @model_validator(mode="after")
    def _ordered(self) -> Histogram:
        if not self.low < self.high:
            raise ValueError(f"low < high, found low={self.low} and high={self.high}")
        return self


class Probe(Section):
    name: Name
    enabled: bool
    examples: Annotated[Whole, Field(ge=2)]
    points: Few
    percentiles: Annotated[list[Annotated[Real, Field(ge=0, le=100)]], Field(min_length=1)]
    histogram: Histogram
    units_of: Literal["none", "last"]


class Keep(Section):
    """For what a run keeps its final weights: how ``python -m bn_replication.ensemble`` evaluates them."""

    examples: Annotated[Whole, Field(ge=0)]
    short_sides: Annotated[list[Annotated[Whole, Field(ge=224)]], Field(min_length=1)]
    statistics_batches: Annotated[Whole, Field(ge=0)]


class Evaluate(Section):
    times: Few
    batch_size: Count
    examples: Annotated[Whole, Field(ge=0)]
    keep: Keep | None = None


class Statistics(Section):
    """On which statistics a trained net with batch norms is evaluated (``measure.statistics``)."""

    batches: Count
    test_batch_sizes: Annotated[list[Annotated[Whole, Field(ge=2)]], Field(min_length=1)]


class Measure(Section):
    """What a run records besides its curve and probes; it watches, and changes no bit of training."""

    gradients: bool = True  # probes: root mean square of d loss / d W, layer by layer; free, so on
    fit: bool = False  # curve: loss and accuracy on training images as on held-out ones, columns fit_*
    linear_share: bool = False  # probes: share of a sigmoid's outputs in [0.2, 0.8] and [0.1, 0.9]
    jacobian: bool = False  # probes: singular values of the Jacobians between consecutive nonlinearities
    landscape: bool = False  # curve: loss and gradient along the gradient; summary: their means over the rows
    gradient_ratio: bool = False  # summary: of the last step, the first layer's gradient over the last hidden layer's
    conditioning: bool = False  # summary: the spectrum of what the net is given
    cost: bool = False  # summary: time of a step, and of one with BN in the norm's place, in one process
    average: Annotated[Real, Field(gt=0, lt=1)] | None = None  # summary: weights averaged, the old one's share a step
    statistics: Statistics | None = None  # summary: the final weights under other statistics than the running ones


class Tracking(Section):
    name: Name
    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None
    directory: Place


class Machine(Section):
    """Where a run happens: nothing here is part of what a run *is*."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    threads: Annotated[Whole, Field(ge=1, le=1024)]
    cuda_graph: bool
    results: Place
    checkpoint_every: Count
    jobs: Annotated[Whole, Field(ge=-1, le=1024)]
    workers: Annotated[Whole, Field(ge=0, le=1024)]
    resume_anyway: bool


class Config(Section):
    """One run, whole."""

    study: Name
    variant: Name
    seed: Annotated[Whole, Field(ge=0)]
    steps: Count
    batch_size: Count
    replicas: Count = 1
    precision: Literal["float32", "tf32", "bfloat16"]
    scale: Scale
    data: Data
    model: Component
    norm: Component
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    probe: Probe
    evaluate: Evaluate
    wandb: Tracking
    machine: Machine
    tuned: dict[str, Positive]
    measure: Measure = Measure()
    last_norm: Component | None = None  # of the last hidden layers, where it is not ``norm``
    alternative: Name | None = None  # to one value that the paper leaves open: which file of configs/alternative

    @model_validator(mode="after")
    def _compatible(self) -> Config:
        if self.batch_size == 1 and self.norm.name not in ("none", "layer", "group", "weight"):
            raise ValueError(f"batch_size of 2 or more with norm={self.norm.name}, found batch_size=1")
        norms = {self.norm.name} | ({self.last_norm.name} if self.last_norm else set())
        if "weight" in norms and self.model.arguments.get("placement") == "after":
            raise ValueError("model.placement=before with norm=weight, which is of the weights, found after")
        if self.precision != "float32" and self.machine.device == "cpu":
            why = "which is slow or wrong there" if self.precision == "bfloat16" else "which it has not"
            raise ValueError(f"precision=float32 on the CPU, found precision={self.precision}, {why}")
        on_probes = [key for key in ("linear_share", "jacobian", "landscape") if getattr(self.measure, key)]
        if on_probes and not self.probe.enabled:
            raise ValueError(f"probe.enabled=true with measure.{' or measure.'.join(on_probes)}, found it false")
        batch_norms = ("batch", "batch_no_affine", "tracking", "reference", "detached", "per_activation", "sync")
        if self.measure.statistics is not None and (other := sorted(norms - set(batch_norms))):
            raise ValueError(f"batch norms alone with measure.statistics, found {', '.join(other)}")
        by_batch = [key for key in ("jacobian", "landscape") if getattr(self.measure, key)]
        if by_batch and "zca" in norms:
            why = "which is measured with a batch's own statistics and zca's running ones"
            raise ValueError(f"a norm other than zca with measure.{' or measure.'.join(by_batch)}, {why}")
        if self.measure.average is not None and "zca" in norms:
            raise ValueError("a norm other than zca with measure.average, whose weights need statistics of their own")
        if self.measure.conditioning and self.data.input in ("binary", "standardize"):
            raise ValueError(
                "data.input of unit, centered, decorrelated or whitened with measure.conditioning, "
                f"found data.input={self.data.input}"
            )
        if self.measure.conditioning and self.data.name.startswith("imagenet"):
            found = f"found data={self.data.name}"
            raise ValueError(f"images of one size, held in memory, with measure.conditioning, {found}")
        if self.optimizer.nesterov and self.optimizer.momentum == 0:
            raise ValueError("optimizer.momentum above 0 with optimizer.nesterov=true, found 0")
        if self.norm.name == "sync" and self.replicas == 1:
            raise ValueError("norm=batch where one process trains (torchrun starts several), found norm=sync")
        if self.replicas > 1 and self.measure.cost:
            raise ValueError(f"measure.cost=false with replicas={self.replicas}, as one of them cannot time a step")
        if self.replicas > 1 and self.measure.statistics is not None:
            why = "as the others would wait for the one that evaluates"
            raise ValueError(f"measure.statistics=null with replicas={self.replicas}, {why}")
        if self.replicas > 1 and ":" in self.machine.device:
            found = f"found machine.device={self.machine.device}"
            raise ValueError(f"machine.device=cuda with replicas={self.replicas}, each on its own GPU, {found}")
        return self

    @property
    def choices(self) -> dict[str, str]:
        """The name chosen in each configuration group: what claims select runs by."""
        groups = {"data": self.data, "model": self.model, "norm": self.norm, "optimizer": self.optimizer}
        groups |= {"schedule": self.schedule, "augment": self.augment, "scale": self.scale}
        chosen = {"variant": self.variant} | {key: group.name for key, group in groups.items()}
        # A study whose weights are evaluated later has records of several evaluations: a run's own is of one crop.
        chosen |= {"evaluation": "one_crop"} if self.evaluate.keep else {}
        return chosen | ({"alternative": self.alternative} if self.alternative else {})

    def identity(self) -> dict[str, Any]:
        """Return what a run *is*: the configuration less what cannot change its numbers."""
        tree = self.model_dump(mode="json", by_alias=True, exclude={"machine", "wandb", "tuned", "measure"})
        for key in ("root", "source"):
            del tree["data"][key]
        # What came later and is not used is no part of a run, so that every earlier one stays as it was.
        for group, keys in {"data": ("size", "images"), "augment": ("area", "aspect")}.items():
            for key in keys:
                if tree[group][key] is None:
                    del tree[group][key]
        # Studies take their sizes from the scale; once resolved, only its name says anything more.
        tree["scale"] = {"name": self.scale.name}
        if self.replicas == 1:  # as every run was before there could be more
            del tree["replicas"]
        # Keys that came later: at their defaults, a run is what it was without them.
        for section, key in ((tree, "last_norm"), (tree, "alternative"), (tree["evaluate"], "keep")):
            if section[key] is None:
                del section[key]
        for key, default in {
            "depth": None,
            "initialisation": "gaussian",
            "lrn_places": "both",
            "lrn_alpha": 1e-4,
        }.items():
            if key in tree["model"] and tree["model"][key] == default:
                del tree["model"][key]
        # What is not measured is no part of a run, so that a new measure leaves every earlier run as it is.
        # Gradients are read off, at no pass of their own, and no claim rests on them: with or without, the same run.
        measured = self.measure.model_dump(mode="json", exclude_defaults=True, exclude={"gradients"})
        return tree | ({"measure": measured} if measured else {})


def validate(tree: Mapping[str, Any]) -> Config:
    """Return ``tree`` as a :class:`Config`, or raise :class:`UserError` in one line that names every fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors(include_url=False)]
        raise UserError("; ".join(lines) + "; mend it on the command line or in configs/") from None


def _explain(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"found unknown key '{key}', expected one of configs/train.yaml{nearest(key, known_keys())}"
    if fault["type"] == "missing":
        return f"found no value for '{key}', expected one"
    message = fault["msg"].removeprefix("Value error, ")
    if not key or fault["type"] == "value_error":
        return f"{key}: expected {message}".removeprefix(": ")
    wanted = "a path" if fault["type"] == "path_type" else message.removeprefix("Input should be ")
    wanted = wanted.replace("a valid integer", "an integer").replace("a valid", "a")
    return f"{key}: found {fault['input']!r}, expected {wanted}"


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of the schema."""
    keys = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        keys.append(key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{key}.")
    return keys

"""From validated configuration to objects: only classes of our own, held against their own signatures."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from bn_replication.errors import UserError, nearest
from bn_replication.models import activation
from bn_replication.norms import materialize
from bn_replication.schema import Component, Config, Optimizer

# What a component is given by the run that builds it, and by no configuration.
GIVEN = {"norm_layer", "last_norm_layer", "act_layer", "classes", "generator"}
GIVEN |= {"in_features", "in_channels", "image_size", "num_features"}
# What a `_target_` may name: the public classes of these modules, and nothing else.
ALLOWED = {
    "norm": ("bn_replication.norms",),
    "model": ("bn_replication.models.mlp", "bn_replication.models.inception"),
}


def norm(component: Component) -> Callable[[int], nn.Module]:
    """Return the constructor, channels -> module, of the normalisation that ``component`` describes."""
    target = _target("norm", component)
    construct = functools.partial(target, **_checked("norm", target, component.arguments))
    construct(2)  # thrown away: a value out of range is refused here, before any data is read
    return construct


def model(
    component: Component,
    norm_layer: Callable[[int], nn.Module],
    last_norm_layer: Callable[[int], nn.Module] | None = None,
) -> Callable[..., nn.Module]:
    """Return what builds the network of ``component``: (``shape``, ``classes``, ``generator``) -> module.

    ``shape`` is that of one input (C, H, W); ``generator`` draws the initial weights. ``last_norm_layer`` is that of
    the last hidden layers, where they have another norm; a network that takes none is a :class:`UserError`.
    """
    arguments = component.arguments
    act_layer = activation(str(arguments.pop("act", "relu")))
    target = _target("model", component)
    arguments = _checked("model", target, arguments)
    if last_norm_layer is not None:
        if "last_norm_layer" not in inspect.signature(target).parameters:
            raise UserError(f"found last_norm with {target.__name__}, expected model=inception; leave one of them out")
        arguments["last_norm_layer"] = last_norm_layer

    def construct(shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> nn.Module:
        sizes = {"in_features": math.prod(shape), "in_channels": shape[0], "image_size": shape[1]}
        taken = inspect.signature(target).parameters
        return target(
            norm_layer=norm_layer,
            act_layer=act_layer,
            classes=classes,
            generator=generator,
            **{key: size for key, size in sizes.items() if key in taken},
            **arguments,
        )

    construct((3, 32, 32), 10, torch.Generator())  # thrown away, as above
    return construct


def network(cfg: Config, norm_layer: Callable[[int], nn.Module] | None = None) -> Callable[..., nn.Module]:
    """Return what builds the whole network of ``cfg``: (``shape``, ``classes``, ``generator``, ``example``) -> module.

    What is wrong with its arguments is refused here, before any data is read. ``example`` is a batch
    (2 or more, C, H, W) that gives layers their sizes, and the device. norm_layer: in place of ``cfg``'s norm.
    Memory is laid out channels last.
    """
    precision(cfg)
    last = None if cfg.last_norm is None else norm(cfg.last_norm)
    construct = model(cfg.model, norm_layer or norm(cfg.norm), last)

    def built(
        shape: tuple[int, int, int], classes: int, generator: torch.Generator, example: torch.Tensor
    ) -> nn.Module:
        module = construct(shape, classes, generator).to(example.device)
        materialize(module, example)
        return module.to(memory_format=torch.channels_last)

    return built


def precision(cfg: Config) -> torch.dtype:
    """Tell this process's GPU how exactly to convolve, and return what autocast is to run in.

    PyTorch lets a GPU round what it convolves to 10 bits (TF32) unless told otherwise. A deep net with BN and no skip
    connections magnifies rounding on its way, so here float32 means float32.
    """
    torch.backends.cudnn.allow_tf32 = cfg.precision == "tf32"
    return torch.bfloat16 if cfg.precision == "bfloat16" else torch.float32


def device(name: str, key: str) -> None:
    """Make ``name`` (cpu, cuda or cuda:N) the device on which streams, generators and new tensors are by default.

    Raises :class:`UserError`, which names ``key``, if it is not there.
    """
    if not name.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise UserError(f"{key}: found '{name}', expected cpu: torch sees no GPU here")
    index, count = torch.device(name).index, torch.cuda.device_count()
    if index is not None:
        if index >= count:
            raise UserError(f"{key}: found '{name}', expected cuda:{count - 1} at most: torch sees {count} GPU(s) here")
        torch.cuda.set_device(index)


def sgd(network: nn.Module, options: Optimizer) -> torch.optim.SGD:
    """Return SGD over ``network``: weights decay; biases and what a norm learns do not unless ``l2_on_norm``.

    ``torch.optim.SGD`` adds ``weight_decay * w`` to the gradient, which is that of ``0.5 * weight_decay * |w|^2``.
    """
    # Weights are matrices and kernels; gamma, beta and biases, and no others, are the parameters of norms or vectors.
    norms = [module for module in network.modules() if type(module).__module__ == "bn_replication.norms"]
    normed = {id(parameter) for module in norms for parameter in module.parameters()}
    spared = [p for p in network.parameters() if id(p) in normed or p.dim() == 1]
    weights = [p for p in network.parameters() if id(p) not in normed and p.dim() > 1]
    decay = options.l2 * options.l2_multiple
    groups = [
        {"params": weights, "weight_decay": decay},
        {"params": spared, "weight_decay": decay if options.l2_on_norm else 0.0},
    ]
    rate = options.rate * options.multiple
    # Fused: one kernel over all tensors, half a millisecond a step less on the small Inception.
    return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, nesterov=options.nesterov, fused=True)


def _target(group: str, component: Component) -> type:
    module, _, name = component.target.rpartition(".")
    where = f"mend it in configs/{group}/"
    if module not in ALLOWED[group]:
        raise UserError(
            f"{group}._target_: found '{component.target}', expected a class of {' or '.join(ALLOWED[group])}; {where}"
        )
    members = vars(importlib.import_module(module))
    classes = [key for key, value in members.items() if _is_own_module_class(value, module)]
    if name not in classes:
        raise UserError(
            f"{group}._target_: found '{name}', expected one of {', '.join(classes)}{nearest(name, classes)}; {where}"
        )
    return members[name]


def _is_own_module_class(value: Any, module: str) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module


def _checked(group: str, target: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``arguments`` with each name and type held against ``target``'s signature."""
    parameters = inspect.signature(target).parameters
    types = typing.get_type_hints(target.__init__)
    where = f"mend it on the command line or in configs/{group}/"
    checked = {}
    for key, value in arguments.items():
        if key == "_partial_":
            continue
        if key not in parameters or key in GIVEN:
            known = (
                f"{group}.{key}', expected an argument of {target.__name__}{nearest(key, parameters.keys() - GIVEN)}"
            )
            raise UserError(f"found unknown key '{known}; {where}")
        hint = types.get(key, Any)
        # No argument of these classes may be negative, and none but a flag takes a truth, with which Python counts.
        numbers = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int | float)]
        flag = bool in (hint, *typing.get_args(hint))
        # Compared and not converted: a whole number may be larger than any float.
        if not all(0 <= n < math.inf and (flag or not isinstance(n, bool)) for n in numbers):
            raise UserError(f"{group}.{key}: found {value!r}, expected a finite number, 0 or more; {where}")
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            taken = adapter.validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise UserError(f"{group}.{key}: found {value!r}, expected {wanted}; {where}") from None
        sizes = taken if isinstance(taken, list | tuple) else [taken]
        if any(isinstance(size, int) and size >= 2**31 for size in sizes):  # as the schema's own whole numbers
            raise UserError(f"{group}.{key}: found {value!r}, expected whole numbers below 2**31; {where}")
        checked[key] = taken
    return checked

"""Singular values of layer Jacobians: the conjecture of Sec. 3.3 that BN brings them near 1.

The paper looks at "two consecutive layers with normalized inputs, and the transformation between these normalized
vectors". So a link goes from what one nonlinearity receives to what the next one does: z -> norm(W g(z)), and the same
without the norm. In the MLP these are all its hidden layers; in Inception the two 3x3 convolutions in a row of every
module whose maps are small enough for a full decomposition: those of 4x4 and less, at 32 pixels all but 3a and 3b.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bn_replication.errors import UserError
from bn_replication.models import ACTIVATIONS
from bn_replication.models.inception import Module
from bn_replication.norms import frozen, population_statistics
from bn_replication.probes import layer_inputs

EXAMPLES = 2  # of the fixed batch; each has a Jacobian of its own
POSITIONS = 16  # of the map that a link ends in; so which links are decomposed does not hang on the net's width
LARGEST = 4096  # outputs of a link; above that a decomposition takes minutes
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Singular values below this share of the largest are taken for ReLU's zeros, which have no logarithm.
ZERO = 1e-3


def links(model: nn.Module) -> dict[tuple[str, str], nn.Sequential]:
    """Return the maps between consecutive nonlinearities, from the first's input to the second's, by their names."""
    kinds = tuple(ACTIVATIONS.values())
    names = {module: name for name, module in model.named_modules()}
    found = {}
    for module in model.modules():
        if isinstance(module, Module):
            double = (module.double3x3_1, module.double3x3_2)
            chain = [layer for part in double for layer in part.children()]
        else:
            chain = list(module.children()) if isinstance(module, nn.Sequential) else []
        at = [i for i, layer in enumerate(chain) if isinstance(layer, kinds)]
        for one, other in itertools.pairwise(at):
            found[names[chain[one]], names[chain[other]]] = nn.Sequential(*chain[one:other])
    return found


def jacobian(link: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobian (outputs, inputs) of ``link`` at one example ``x`` (1, ...); examples must not mix in it."""
    with torch.no_grad():
        outputs = link(x).numel()
    copies = x.expand(outputs, *x.shape[1:]).clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.enable_grad():
        # One copy of the example an output: a single backward pass then gives every row.
        rows = torch.autograd.grad(link(copies).flatten(1).diagonal().sum(), copies)[0]
    return rows.flatten(1)


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of ``matrix``, ascending, float64, less those that are zero for all we can tell."""
    matrix = matrix.double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return values[values > ZERO * values[-1]]


def measure(model: nn.Module, inputs: Tensor) -> dict[str, dict[str, Any]]:
    """Return, by the name of a link's second nonlinearity, quantiles of the singular values and their ``log_spread``.

    ``log_spread`` is the root mean square of the logarithms: 0 where every singular value is 1. Statistics of batch
    norms are those of ``inputs``, held fixed, so that an example's output depends on that example alone. Links that
    are too large, or whose values are not finite, are left out.
    """
    rows = {}
    for end, link, z in _received(model, inputs) if _finite(model) else ():
        if not z.isfinite().all():
            continue
        examples = [z[i : i + 1] for i in range(min(EXAMPLES, len(inputs)))]
        if not _small(link, examples[0]):
            continue
        matrices = [jacobian(link, x) for x in examples]
        if not all(matrix.isfinite().all() for matrix in matrices):
            continue
        values = torch.cat([singular_values(matrix) for matrix in matrices])
        if not len(values):  # a layer that passes nothing on
            continue
        rows[end] = {
            "singular_values": [float(value) for value in values.quantile(values.new_tensor(QUANTILES))],
            "log_spread": float(values.log().square().mean().sqrt()),
        }
    return rows


def log_spread(rows: Sequence[dict[str, Any]]) -> float:
    """Return the root mean square over layers of their ``log_spread``; NaN if there is none."""
    squares = [row["log_spread"] ** 2 for row in rows]
    return (sum(squares) / len(squares)) ** 0.5 if squares else float("nan")


@torch.no_grad()
def _received(model: nn.Module, inputs: Tensor) -> list[tuple[str, nn.Sequential, Tensor]]:
    """Return the end of each link of ``model``, the link, its statistics held fixed, and what it receives."""
    still = frozen(model, population_statistics(model, [inputs]))
    between = links(still)
    seen = layer_inputs(still, {start: still.get_submodule(start) for start, _ in between}, inputs)
    return [(end, link, seen[start]) for (start, end), link in between.items() if start in seen]


@torch.no_grad()
def _small(link: nn.Module, x: Tensor) -> bool:
    outputs = link(x)
    return outputs[0, 0].numel() <= POSITIONS and outputs.numel() <= LARGEST


def refuse_too_large(model: nn.Module, inputs: Tensor) -> None:
    """Raise :class:`UserError` if :func:`measure` would leave out every link of ``model`` for its size."""
    received = _received(model, inputs)
    if not any(_small(link, z[:1]) for _, link, z in received):
        found = "layers that end in larger maps only" if received else "none"
        expected = f"two nonlinearities in a row, in maps of at most {POSITIONS} positions and {LARGEST} values"
        raise UserError(f"found {found}, expected {expected} for measure.jacobian; mend model or data")


def _finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())

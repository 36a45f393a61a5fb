"""Batch normalization as in Ioffe & Szegedy (2015), and the layers that are compared with it.

To be read from the top:

1. Algorithm 1 (training): :func:`batch_norm_forward` and :func:`batch_norm_backward`, the paper's lines.
2. The layers. Each takes ``num_features`` first, so ``functools.partial(BatchNorm, eps=1e-5)`` is a norm
   layer; each accepts ``(N, C)`` and ``(N, C, H, W)``, so one class serves fully connected and conv nets.
3. Algorithm 2 (inference): :func:`population_statistics`, :func:`frozen` and :func:`fold`.

For a convolution everything is per feature map (Sec. 3.2): a mini-batch of m examples with p x q locations
holds m' = m*p*q values of each channel, and m' stands wherever the paper writes m.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from bn_replication.errors import UserError

# --- Algorithm 1: training ------------------------------------------------------------------------------


class Normalized(NamedTuple):
    """What Algorithm 1 computes on its way: ``y``, ``x_hat`` shaped as x; ``mean``, ``var`` (C,)."""

    y: Tensor
    x_hat: Tensor
    mean: Tensor
    var: Tensor  # biased: divided by m


def _axes(x: Tensor) -> tuple[int, ...]:
    """The axes that are averaged over: all but the channel's."""
    return (0, *range(2, x.dim()))


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """View ``v`` (C,) so that it broadcasts over ``x`` (N, C) or (N, C, H, W)."""
    return v.view(1, -1, *[1] * (x.dim() - 2))


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mini-batch mean and biased variance, each (C,), of x (N, C) or (N, C, H, W)."""
    mean = x.mean(_axes(x))
    # Two passes: E[x^2] - E[x]^2 would cancel where the mean is large against the deviation.
    var = (x - _per_channel(mean, x)).square().mean(_axes(x))
    return mean, var


def batch_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Normalized:
    """Normalise a mini-batch and scale and shift it: the four lines of Algorithm 1.

    ``x`` is (N, C) or (N, C, H, W); ``gamma`` and ``beta`` are (C,).
    """
    mean, var = batch_moments(x)  # mu_B = 1/m sum x_i and sigma_B^2 = 1/m sum (x_i - mu_B)^2
    x_hat = (x - _per_channel(mean, x)) / _per_channel(torch.sqrt(var + eps), x)
    y = _per_channel(gamma, x) * x_hat + _per_channel(beta, x)
    return Normalized(y, x_hat, mean, var)


def batch_norm_backward(
    grad_y: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the loss with respect to x, gamma and beta: the six equations of Sec. 3.

    ``mean`` and ``var`` (biased) are those of the forward pass. The loss reaches x by three paths, directly
    and through the two statistics; leaving the last two out is the fault that Sec. 2 warns of
    (:class:`DetachedBatchNorm`).
    """
    axes, m = _axes(x), x.numel() // x.shape[1]
    centred = x - _per_channel(mean, x)
    std = torch.sqrt(var + eps)
    grad_x_hat = grad_y * _per_channel(gamma, x)
    grad_var = (grad_x_hat * centred).sum(axes) * -0.5 * std**-3
    # The paper's second term holds sum(x_i - mu_B): zero but for rounding, and kept as printed.
    grad_mean = -grad_x_hat.sum(axes) / std + grad_var * (-2 * centred).sum(axes) / m
    grad_x = (
        grad_x_hat / _per_channel(std, x) + _per_channel(grad_var, x) * 2 * centred / m + _per_channel(grad_mean, x) / m
    )
    grad_gamma = (grad_y * centred).sum(axes) / std  # sum of grad_y * x_hat
    grad_beta = grad_y.sum(axes)
    return grad_x, grad_gamma, grad_beta


class Algorithm1(torch.autograd.Function):
    """``Algorithm1.apply(x, gamma, beta, eps) -> (y, mean, var)``; gradients flow to x, gamma and beta, once.

    ``mean`` and ``var`` (biased) are handed out for the running statistics and carry no gradient.
    """

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y, _, mean, var = batch_norm_forward(x, gamma, beta, eps)
        return y, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, gamma, _, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        # x_hat is cheaper to compute again than to keep: x is alive anyway.
        ctx.save_for_backward(x, gamma, mean, var)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, gamma, mean, var = ctx.saved_tensors
        return *batch_norm_backward(grads[0], x, gamma, mean, var, ctx.eps), None


# --- the layers -----------------------------------------------------------------------------------------


class BatchNorm(_BatchNorm):
    """Batch normalization on PyTorch's kernel, for (N, C) and (N, C, H, W).

    gamma (``weight``) starts at 1 and beta (``bias``) at 0, which the paper leaves open. ``momentum`` is the
    weight of the *new* batch in the running statistics (Caffe's is that of the old ones); None averages over
    all batches alike. A batch is normalised with its biased variance; ``running_var`` keeps the unbiased one.

    Raises :class:`UserError` for another rank or width, or for a batch with one value a channel, whose
    variance is 0.
    """

    # Does the layer take a per-channel constant out again, so that a bias in front of it has no effect and
    # beta takes its role (Sec. 3.2)? With affine=False nothing takes that role, yet the bias is no less
    # without effect.
    shifts: ClassVar[bool] = True

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        # PyTorch's kernel refuses eps = 0 in training; ours takes it, as some identities need it.
        if not (eps > 0 or (eps == 0 and isinstance(self, ReferenceBatchNorm))):
            raise UserError(f"found eps={eps}, expected more than 0; mend it in configs/norm/")
        if momentum is not None and not 0 <= momentum <= 1:
            raise UserError(
                f"found momentum={momentum}, expected the new batch's weight, 0 to 1; mend it in configs/norm"
            )
        super().__init__(num_features, eps, momentum, affine)

    @property
    def uses_batch(self) -> bool:
        """Whether the next input is normalised by its own statistics: in training or without running ones."""
        return self.training or self.running_mean is None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4) or input.shape[1] != self.num_features:
            wanted = f"(N, {self.num_features}) or (N, {self.num_features}, H, W)"
            raise UserError(f"found an input of shape {tuple(input.shape)}, expected {wanted}; mend num_features")
        if self.uses_batch and input.numel() < 2 * input.shape[1]:
            raise UserError(
                f"found {input.numel() // input.shape[1]} value a channel to normalise, in an input of shape "
                f"{tuple(input.shape)}, expected at least 2; mend it with batch_size=2 or more, or norm=layer"
            )


class ReferenceBatchNorm(BatchNorm):
    """Batch normalization on this file's own Algorithm 1, with the state dict of :class:`BatchNorm`."""

    def normalize(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, and the mini-batch mean and biased variance, of a batch in training."""
        return Algorithm1.apply(x, gamma, beta, self.eps)  # type: ignore[return-value]

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        # Statistics of bfloat16 values are taken in float32, as PyTorch's kernel does.
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        gamma = x.new_ones(self.num_features) if self.weight is None else self.weight
        beta = x.new_zeros(self.num_features) if self.bias is None else self.bias
        if self.uses_batch:
            y, mean, var = self.normalize(x, gamma, beta)
            if self.track_running_stats:
                self._track(mean, var, x.numel() // self.num_features)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            scale, shift = inference_affine(gamma, beta, self.running_mean, self.running_var, self.eps)
            y = _per_channel(scale, x) * x + _per_channel(shift, x)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, m: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        # biased in the batch's own normalisation; the unbiased one is kept for inference (Alg. 2)
        self.running_var.lerp_(var * (m / (m - 1)), weight)


class DetachedBatchNorm(ReferenceBatchNorm):
    """The counter-example of Sec. 2: the same forward pass, with the statistics outside the gradient.

    The gradient step then believes that it can move what the normalisation takes out again.
    """

    # The bias in front has no effect on the output here either, but it has a gradient: it is what grows.
    shifts: ClassVar[bool] = False

    def normalize(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            mean, var = batch_moments(x)
        x_hat = (x - _per_channel(mean, x)) / _per_channel(torch.sqrt(var + self.eps), x)
        return _per_channel(gamma, x) * x_hat + _per_channel(beta, x), mean, var


class _Total(torch.autograd.Function):
    """``_Total.apply(x)`` is the sum of x over all replicas; each of their losses sends a gradient back to each x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SyncBatchNorm(ReferenceBatchNorm):
    """Batch normalization over the batches of all replicas at once, as if one process held them all.

    Every replica's batch has the same size. On GPUs it is PyTorch's kernel (``nn.SyncBatchNorm``), which the CPU has
    not: there Algorithm 1, its sums taken over replicas. Alone, and in evaluation, it is what it derives from.
    """

    process_group = None  # all replicas; PyTorch's asks
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    @property
    def replicas(self) -> int:
        # A net in evaluation mode, a probe's or one that is judged, has no others at its side.
        return dist.get_world_size() if self.training and dist.is_available() and dist.is_initialized() else 1

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda and self.replicas > 1:
            self._check_input_dim(input)
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        return super().forward(input)

    def normalize(self, x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.replicas == 1:
            return super().normalize(x, gamma, beta)
        axes, m = _axes(x), self.replicas * (x.numel() // self.num_features)
        mean = _Total.apply(x.sum(axes)) / m  # type: ignore[operator]
        centred = x - _per_channel(mean, x)
        var = _Total.apply(centred.square().sum(axes)) / m  # type: ignore[operator]
        y = _per_channel(gamma, x) * centred / _per_channel(torch.sqrt(var + self.eps), x) + _per_channel(beta, x)
        return y, mean.detach(), var.detach()

    def _track(self, mean: Tensor, var: Tensor, m: int) -> None:
        super()._track(mean, var, m * self.replicas)


class TrackingBatchNorm(BatchNorm):
    """:class:`BatchNorm`, the same in training, that keeps moving averages of several memories side by side.

    ``momenta`` are the new batch's weights; row k of ``moving_mean`` and ``moving_var`` (unbiased), (K, C) each, is
    what ``running_mean`` and ``running_var`` would be with ``momentum=momenta[k]``.
    """

    moving_mean: Tensor
    moving_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        momenta: Sequence[float] = (0.01, 0.1, 1.0),
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)
        if not momenta or not all(0 < weight <= 1 for weight in momenta):
            raise UserError(
                f"found momenta={list(momenta)}, expected weights above 0, up to 1; mend it in configs/norm"
            )
        self.momenta = tuple(momenta)
        self.register_buffer("moving_mean", torch.zeros(len(momenta), num_features))
        self.register_buffer("moving_var", torch.ones(len(momenta), num_features))

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.track_running_stats):
            return super().forward(input)
        self._check_input_dim(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        # With all the weight on the new batch, PyTorch's kernel leaves that batch's own statistics behind.
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        output = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(var, weight)
            for k, each in enumerate(self.momenta):
                self.moving_mean[k].lerp_(mean, each)
                self.moving_var[k].lerp_(var, each)
        return output

    def moving(self, k: int) -> Population:
        """Return the statistics that ``momenta[k]`` kept."""
        return Population(self.moving_mean[k], self.moving_var[k])


class NoisyBatchNorm(BatchNorm):
    """:class:`BatchNorm` whose outputs are made unstable on purpose (Santurkar et al. 2018).

    In training each channel draws a shift within ``mean`` of 0 and a scale of 1 to ``spread``, both uniform and anew
    at each step. An output y becomes s * y + m, with m uniform within ``jitter`` of that shift and s normal about
    that scale with deviation ``jitter``. All is drawn from the global generator, as dropout's masks are, which the
    training loop seeds by the step. In evaluation there is no noise.

    ``shift`` and ``scale``, each (C,) and of the last training step, are buffers, so that a probe can look at what
    training saw without a draw of its own: see :func:`last_noise`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        mean: float = 0.5,
        spread: float = 1.25,
        jitter: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine)
        if spread < 1:
            raise UserError(f"found spread={spread}, expected 1 or more; mend it in configs/norm/noisy.yaml")
        self.mean, self.spread, self.jitter = mean, spread, jitter
        self.held = False  # is the last step's noise applied in evaluation too?
        self.register_buffer("shift", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if self.training:
            self.shift.uniform_(-self.mean, self.mean)
            self.scale.uniform_(1, self.spread)
            m = torch.empty_like(y).uniform_(-self.jitter, self.jitter) + _per_channel(self.shift, y)
            s = torch.empty_like(y).normal_(0, self.jitter) + _per_channel(self.scale, y)
            return s * y + m
        if self.held:  # in the mean over examples
            return _per_channel(self.scale, y) * y + _per_channel(self.shift, y)
        return y


class PerActivationBatchNorm(LazyModuleMixin, BatchNorm):
    """Batch normalization with gamma, beta, mean and variance per activation, C*H*W of each (Sec. 4.2.3).

    Statistics are over the N examples alone. A norm layer is told its channels and not H x W, so the
    parameters, flat (C*H*W,), take their size from the first input or from a state dict. Call
    :func:`materialize` before counting parameters or building an optimiser.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__(num_features, eps, momentum, affine)  # pyright: ignore[reportAttributeAccessIssue]
        # Of what the base class has just made, only the size is wrong.
        if affine:
            self.weight, self.bias = UninitializedParameter(), UninitializedParameter()
        self.running_mean, self.running_var = UninitializedBuffer(), UninitializedBuffer()

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():  # type: ignore[misc]
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Take the size from ``input`` (N, C) or (N, C, H, W); called once, before the first forward pass."""
        self.num_features = input[0].numel()
        if self.has_uninitialized_params():  # type: ignore[misc]
            for tensor in (*self._parameters.values(), *self._buffers.values()):
                if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                    tensor.materialize((self.num_features,))
            self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1)).view(input.shape)


class InverseRoot(torch.autograd.Function):
    """``InverseRoot.apply(S) -> S^(-1/2)`` of a symmetric, positive definite S (C, C), differentiable once.

    The derivative of a matrix function in the eigenbasis is a product with divided differences (Daleckii and Krein);
    for the inverse root these are -1 / (a b (a + b)) of roots a, b: no difference of eigenvalues stands below, so equal
    ones do no harm, as they would in the derivative of the decomposition itself.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not matrix.isfinite().all():  # a net that diverges, which LAPACK would call an error
            ctx.save_for_backward(torch.full_like(matrix, torch.nan), matrix.new_ones(len(matrix)))
            return torch.full_like(matrix, torch.nan)
        values, basis = torch.linalg.eigh(matrix.double())
        roots = values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        ctx.save_for_backward(basis, roots)
        return ((basis / roots) @ basis.T).to(matrix.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        basis, roots = ctx.saved_tensors
        inner = basis.T @ (0.5 * (grad + grad.T)).to(basis) @ basis
        sums, products = roots[:, None] + roots, roots[:, None] * roots
        return (basis @ (-inner / (products * sums)) @ basis.T).to(grad.dtype)


class ZCANorm(nn.Module):
    """Whitening of a layer by its mini-batch's full covariance (Sec. 2; ZCA as in Huang et al. 2018).

    What BN is the cheap stand-in for (Sec. 3): channels are decorrelated too, y = gamma * (x - mean) @ S^(-1/2) + beta,
    with S the biased covariance (C, C) plus ``eps`` over batch and positions. Running mean and covariance (unbiased)
    serve in evaluation; ``momentum`` is the weight of the new batch. Raises :class:`UserError` for another rank or
    width, or for a batch with one value a channel.
    """

    shifts: ClassVar[bool] = True
    running_mean: Tensor
    running_cov: Tensor

    def __init__(self, num_features: int, eps: float = 1e-3, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        if not eps > 0:
            raise UserError(f"found eps={eps}, expected more than 0; mend it in configs/norm/")
        if not 0 <= momentum <= 1:
            raise UserError(
                f"found momentum={momentum}, expected the new batch's weight, 0 to 1; mend it in configs/norm/"
            )
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_cov", torch.eye(num_features))

    def forward(self, input: Tensor) -> Tensor:  # (N, C) or (N, C, H, W)
        if input.dim() not in (2, 4) or input.shape[1] != self.num_features:
            wanted = f"(N, {self.num_features}) or (N, {self.num_features}, H, W)"
            raise UserError(f"found an input of shape {tuple(input.shape)}, expected {wanted}; mend num_features")
        with torch.autocast(input.device.type, enabled=False):  # as PyTorch's batch norm: bfloat16 in float32
            x = input.to(torch.promote_types(input.dtype, torch.float32)).movedim(1, -1)
            return self._whiten(x.flatten(0, -2)).view(x.shape).movedim(-1, 1).to(input.dtype)

    def _whiten(self, rows: Tensor) -> Tensor:  # (m, C)
        if self.training:
            m = len(rows)
            if m < 2:
                raise UserError("found 1 value a channel to whiten, expected at least 2; mend it with batch_size")
            mean = rows.mean(0)
            centred = rows - mean
            covariance = centred.T @ centred / m
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_cov.lerp_(covariance * (m / (m - 1)), self.momentum)
        else:
            covariance, centred = self.running_cov, rows - self.running_mean
        whitening = InverseRoot.apply(covariance + self.eps * torch.eye(self.num_features).to(covariance))
        y = centred @ whitening  # type: ignore[operator]
        if self.weight is not None and self.bias is not None:
            y = y * self.weight + self.bias
        return y


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He 2018): statistics per example and group of channels.

    gamma and beta are per channel. ``groups`` is an upper bound, since widths vary along a net: what is used
    is the largest divisor of ``num_features`` that is not above it and leaves two channels a group, as one
    channel a group would be another thing, instance normalization. Raises :class:`UserError` for another
    rank.
    """

    # A constant added to one channel moves its group's mean only in part, so a bias in front still counts.
    shifts: ClassVar[bool] = False

    def __init__(self, num_features: int, groups: int = 32, eps: float = 1e-5, affine: bool = True) -> None:
        if groups < 1:
            raise UserError(f"found groups={groups}, expected 1 or more; mend it in configs/norm/group.yaml")
        divisors = [g for g in range(2, min(groups, num_features // 2) + 1) if num_features % g == 0]
        super().__init__(divisors[-1] if divisors else 1, num_features, eps, affine)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (2, 4):
            raise UserError(f"found an input of shape {tuple(input.shape)}, expected (N, C) or (N, C, H, W)")
        if input[:1].numel() == self.num_groups:
            raise UserError(
                f"found one value to normalise, in an input of shape {tuple(input.shape)}, expected "
                "at least 2; mend it with a wider layer"
            )
        return super().forward(input)


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016): one group of all that an example holds, C or C*H*W values."""

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, 1, eps, affine)


class WeightNorm(nn.Module):
    """Weight normalization (Salimans & Kingma 2016): each row of the linear map in front as g * v / |v|, plus b.

    The map keeps v as its weight and has no bias, and this layer scales what it computes, y = g * (v x) / |v| + b,
    which is the same and leaves the map's parameters where they are. g starts at |v|, so that the net starts as the
    plain one. :func:`materialize` tells the layer which map stands in front.
    """

    shifts: ClassVar[bool] = True  # b takes the bias's role: a bias in front would be scaled along
    per_channel: ClassVar[bool] = True  # no output of the map knows of another

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self._front: tuple[nn.Linear | nn.Conv2d, ...] = ()  # in a tuple: the map is no part of this layer

    @torch.no_grad()
    def follow(self, front: nn.Linear | nn.Conv2d | None) -> None:
        """Stand behind ``front``, and scale by |v|, its length as it is now."""
        if front is None or len(front.weight) != len(self.weight):
            found = "none" if front is None else f"one of {len(front.weight)}"
            raise UserError(
                f"found {found} in front of norm=weight, expected a linear map of {len(self.weight)} outputs"
            )
        self._front = (front,)
        self.weight.copy_(self._lengths())

    def _lengths(self) -> Tensor:
        return self._front[0].weight.flatten(1).norm(dim=1)

    def forward(self, input: Tensor) -> Tensor:  # (N, C) or (N, C, H, W)
        if not self._front:
            raise UserError("found norm=weight alone, expected norms.materialize(model, example) first")
        return input * _per_channel(self.weight / self._lengths(), input) + _per_channel(self.bias, input)


class NoNorm(nn.Identity):
    """The identity: ``num_features`` is taken, as every norm layer is called with it, and ignored."""

    shifts: ClassVar[bool] = False

    def __init__(self, num_features: int) -> None:
        super().__init__()


def materialize(model: nn.Module, example: Tensor) -> None:
    """Tell layers what only the whole net knows; nothing else changes.

    A :class:`WeightNorm` is told the map in front of it, and a :class:`PerActivationBatchNorm` its size, by one pass
    over ``example``.
    """
    front = None
    for module in model.modules():  # in depth order
        if isinstance(module, nn.Linear | nn.Conv2d):
            front = module
        elif isinstance(module, WeightNorm):
            module.follow(front)
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        with _modes(model), torch.no_grad():
            for module in model.modules():
                # Containers train, so that a head used only then is reached; norms and dropout do not.
                module.training = any(True for _ in module.children())
            model(example)


# --- which statistics -----------------------------------------------------------------------------------


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of ``model`` by name, in depth order: ours and PyTorch's own."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, layer in found.items():
        if any(is_lazy(tensor) for tensor in (*layer.parameters(), *layer.buffers())):
            raise UserError(f"found layer '{name}' without a size, expected norms.materialize(model, example) first")
    return found


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let every batch norm use the statistics of the batch in hand, in eval mode too, and change nothing.

    The running statistics are out of sight meanwhile (also of ``state_dict``), and are the same tensors with
    the same values afterwards, whatever happens inside.
    """
    hidden = [
        (layer, layer.track_running_stats, layer.running_mean, layer.running_var)
        for layer in batch_norms(model).values()
    ]
    try:
        for layer, *_ in hidden:
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        yield
    finally:
        for layer, tracks, mean, var in hidden:
            layer.track_running_stats, layer.running_mean, layer.running_var = tracks, mean, var


@contextmanager
def last_noise(model: nn.Module) -> Iterator[None]:
    """Let every :class:`NoisyBatchNorm` shift and scale in evaluation as it did in its last training step.

    Nothing is drawn: what varies from example to example within a step is left out.
    """
    noisy = [module for module in model.modules() if isinstance(module, NoisyBatchNorm)]
    try:
        for layer in noisy:
            layer.held = True
        yield
    finally:
        for layer in noisy:
            layer.held = False


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    """Put each module back in its own mode, training or evaluation, in the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# --- Algorithm 2: inference -----------------------------------------------------------------------------


class Population(NamedTuple):
    """One layer's population statistics, each (C,): E[x] and the unbiased Var[x]."""

    mean: Tensor
    var: Tensor


def inference_affine(gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (scale, shift) of y = scale * x + shift: line 11 of Algorithm 2, the frozen layer."""
    scale = gamma / torch.sqrt(var + eps)
    return scale, beta - scale * mean


@torch.no_grad()
def population_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Population]:
    """Return E[x] and Var[x] of every batch norm from *training* mini-batches: lines 8 to 10 of Algorithm 2.

    Each batch passes once through the whole net, every layer normalising by the batch's own statistics as it
    did in training, and E[x] = mean of batch means, Var[x] = mean of m/(m-1) * batch variance (biased), which
    is the paper's factor in front of the mean when all batches have m values a channel.

    Dropout is off: inference has none, and with it the variances would be those of a noisier net (Li et al.
    2019). The pass therefore draws no random numbers, and leaves parameters, buffers and modes as they were;
    put the statistics to use with :func:`frozen`. A layer that is not reached in eval mode (an auxiliary
    head) is left out.

    Raises :class:`UserError` if there is no batch.
    """
    totals: dict[str, tuple[int, Tensor, Tensor]] = {}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(1) if isinstance(layer, PerActivationBatchNorm) else inputs[0]
            m = x.numel() // x.shape[1]
            if m < 2:
                return  # the layer itself refuses it, in so many words
            # Summed in float64, so that the number of batches costs no accuracy.
            mean, var = (moment.double() for moment in batch_moments(x))
            count, means, variances = totals.get(name, (0, torch.zeros_like(mean), torch.zeros_like(var)))
            totals[name] = count + 1, means + mean, variances + var * (m / (m - 1))

        return hook

    handles = [layer.register_forward_pre_hook(observe(name)) for name, layer in batch_norms(model).items()]
    seen = False
    try:
        with _modes(model), batch_statistics(model):
            model.eval()
            for batch in batches:
                seen = True
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise UserError("found no batch, expected at least one training mini-batch for the population statistics")
    return {name: Population(means / count, variances / count) for name, (count, means, variances) in totals.items()}


@torch.no_grad()
def frozen(model: nn.Module, statistics: Mapping[str, Population]) -> nn.Module:
    """Return a copy of ``model`` in eval mode whose batch norms use ``statistics``, by layer name.

    Layers without an entry keep their running statistics. Raises :class:`UserError` for a name that is no
    batch norm.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers = batch_norms(model)
    for name, (mean, var) in statistics.items():
        if name not in layers:
            raise UserError(f"found statistics of '{name}', expected names among {', '.join(layers) or 'none'}")
        layer = layers[name]
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return model


def frozen_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), each (C,) in float64, of a batch norm with running statistics; else ``None``."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    return inference_affine(gamma, beta, mean, var, norm.eps)


@torch.no_grad()
def absorb(linear: nn.Linear | nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make ``linear`` compute scale * linear(x) + shift, per output channel, in place and with a bias."""
    weight = linear.weight
    bias = shift if linear.bias is None else shift + scale * linear.bias
    weight.copy_(scale.view(-1, *[1] * (weight.dim() - 1)) * weight)
    linear.bias = nn.Parameter(bias.to(weight), requires_grad=weight.requires_grad)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in eval mode, each batch norm folded into the linear map in front of it.

    Both maps are affine once the statistics are frozen (Alg. 2), so they are one; in the norm's place stands
    an ``nn.Identity``. Two shapes of net are understood: an ``nn.Sequential`` in which a norm follows its
    ``nn.Linear`` or ``nn.Conv2d``, and a module that defines ``fold_norm()`` and folds what is its own, in
    place (:func:`frozen_affine` and :func:`absorb` are its tools). Anything else, a norm after a nonlinearity
    say, stays and computes what it did.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    # A linear map that stands in two places must not be scaled for the sake of one.
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for module in list(model.modules()):
        if callable(own := getattr(module, "fold_norm", None)):
            own()
        elif _is_chain(module):
            before: nn.Module | None = None  # the layer whose output the next child reads
            for name, child in zip(list(module._modules), list(module), strict=True):
                affine = frozen_affine(child)
                if (
                    affine is not None
                    and isinstance(before, nn.Linear | nn.Conv2d)
                    and places[id(before)] == 1
                    and affine[0].numel() == before.weight.shape[0]
                ):
                    absorb(before, *affine)
                    setattr(module, name, nn.Identity())
                elif not isinstance(child, nn.Identity):
                    before = _last(child)
    return model


def _is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether ``module`` runs its children one after the other, and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _last(module: nn.Module) -> nn.Module:
    """Return the layer that computes the output of ``module``: a chain's last, or itself."""
    while _is_chain(module):
        layers = [child for child in module if not isinstance(child, nn.Identity)]
        if not layers:
            break
        module = layers[-1]
    return module

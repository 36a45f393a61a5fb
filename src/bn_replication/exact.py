"""The exact claims of the paper, measured: ``python -m bn_replication.exact``.

An identity needs no training to be decided, only arithmetic. Each claim is a function that draws small random
cases, computes both sides of the paper's equation by ways that share as little as they can, and returns the
worst disagreement. One record is written per claim and seed (study ``exact``, arm = the claim); the ledger
judges it.

In every summary ``error`` is the worst relative error in float64, over all cases and all parts of the claim
(``error_*``). Beside it stand measurements: ``float32_error``, PyTorch's kernel as training uses it, and
``departure_*``, how far an identity that needs eps = 0 is from holding at eps = 1e-5.
"""
# ruff: noqa: E402

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bn_replication.ledger import SCALES


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.exact", description="Measure the exact claims and write their records."
    )
    parser.add_argument("--out", type=Path, default=Path("results/runs"), help="root of the records")
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, counted from 0")
    return parser.parse_args(arguments)


# The command line first: what follows takes seconds to import, and --help needs none of it.
ARGUMENTS = parse() if __name__ == "__main__" else None

import datetime
import itertools
import math
import time
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bn_replication import norms, records
from bn_replication.errors import UserError, one_line, writing
from bn_replication.ledger import digests_for_study
from bn_replication.provenance import environment
from bn_replication.streams import generator

CASES = 6  # random cases a claim and seed
EPS = 1e-5
Rows = list[dict[str, float]]

# --- what is measured, and on what
# -----------------------------------------------------------------------------


class Worst(dict[str, float]):
    """A summary: the largest value seen under each key."""

    def see(self, **values: float) -> None:
        for key, value in values.items():
            # A NaN would lose every comparison and vanish.
            self[key] = math.nan if math.isnan(value) else max(self.get(key, 0.0), value)

    def total(self) -> Worst:
        """Add ``error``, the largest of the ``error_*`` seen."""
        self.see(error=max(value for key, value in self.items() if key.startswith("error_")))
        return self


def disagreement(found: Tensor, expected: Tensor) -> float:
    """Return the worst over channels of max|found - expected| / max|expected|; a vector is one channel."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    found, expected = found.detach().double(), expected.detach().double()
    if found.dim() > 1:
        found, expected = found.transpose(0, 1).flatten(1), expected.transpose(0, 1).flatten(1)
    return ((found - expected).abs().amax(-1) / expected.abs().amax(-1)).max().item()


def uniform(rng: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64)


def normal(rng: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def integer(rng: Generator, low: int, high: int) -> int:
    """Draw from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def activations(rng: Generator, convolutional: bool) -> Tensor:
    """Draw x, (N, C) or (N, C, H, W), whose values float32 holds exactly.

    Channel means lie in [-10, 10] and deviations in [0.1, 10], so that their ratio, which multiplies rounding
    errors, stays near 100; a channel has 8 to 288 values.
    """
    channels = integer(rng, 1, 6)
    if convolutional:
        shape = (integer(rng, 2, 8), channels, integer(rng, 2, 6), integer(rng, 2, 6))
    else:
        shape = (integer(rng, 8, 64), channels)
    each = (1, channels, *[1] * (len(shape) - 2))
    x = uniform(rng, -10, 10, *each) + 10 ** uniform(rng, -1, 1, *each) * normal(rng, *shape)
    return x.float().double()


def gamma_beta(rng: Generator, channels: int) -> tuple[Tensor, Tensor]:
    return uniform(rng, 0.5, 2, channels).float().double(), normal(rng, channels).float().double()


def linear_map(rng: Generator, convolutional: bool) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """Draw (map, W, u) such that map(W, u) = Wu is (N, C) or (N, C, H, W)."""
    inputs, outputs = integer(rng, 2, 6), integer(rng, 1, 6)
    if convolutional:
        size = integer(rng, 3, 6)
        weight, u = normal(rng, outputs, inputs, 3, 3), normal(rng, integer(rng, 2, 6), inputs, size, size)
        return (lambda w, u: F.conv2d(u, w, padding=1)), weight, u
    return (
        (lambda w, u: F.linear(u, w)),
        normal(rng, outputs, inputs),
        normal(rng, integer(rng, 8, 64), inputs),
    )


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return norms.Algorithm1.apply(x, gamma, beta, eps)[0]  # type: ignore[index]


def kernel(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """PyTorch's batch normalization, which training uses."""
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)


def moments_by_hand(x: Tensor) -> tuple[list[float], list[float]]:
    """Return each channel's mean and biased variance by plain loops, each sum rounded once."""
    means, variances = [], []
    for c in range(x.shape[1]):
        values = x[:, c].flatten().tolist()
        means.append(math.fsum(values) / len(values))
        variances.append(math.fsum((value - means[-1]) ** 2 for value in values) / len(values))
    return means, variances


def normalized_by_hand(
    x: Tensor, gamma: Tensor, beta: Tensor, means: list[float], variances: list[float], eps: float
) -> Tensor:
    """Return gamma * (x - mean) / sqrt(var + eps) + beta by plain loops over channels and values."""
    y = torch.empty_like(x)
    for c, (g, b, mean, var) in enumerate(zip(gamma.tolist(), beta.tolist(), means, variances, strict=True)):
        values = [g * ((value - mean) / math.sqrt(var + eps)) + b for value in x[:, c].flatten().tolist()]
        y[:, c] = torch.tensor(values, dtype=x.dtype).view_as(y[:, c])
    return y


# --- Section 3: Algorithm 1, its gradient, and what gamma and beta can undo
# --------------------------------------


def alg1_forward(rng: Generator) -> tuple[Worst, Rows]:
    """The layer, ours and PyTorch's, computes the printed definition."""
    worst = Worst()
    for case in range(CASES):
        x = activations(rng, convolutional=case % 2 == 1)
        gamma, beta = gamma_beta(rng, x.shape[1])
        expected = normalized_by_hand(x, gamma, beta, *moments_by_hand(x), EPS)
        worst.see(
            error_ours=disagreement(batch_norm(x, gamma, beta, EPS), expected),
            error_kernel=disagreement(kernel(x, gamma, beta, EPS), expected),
            float32_error=disagreement(kernel(x.float(), gamma.float(), beta.float(), EPS), expected),
        )
    return worst.total(), []


def alg1_backward(rng: Generator) -> tuple[Worst, Rows]:
    """The printed closed form is the gradient with respect to x, gamma and beta.

    It is held against automatic differentiation, PyTorch's kernel, and the complex step: for an analytic f,
    Im f(x + ihv) / h is the derivative along v without a subtraction, exact to rounding at h = 1e-30, and
    owes nothing to the chain rule.
    """
    forward: Callable[..., norms.Normalized] = norms.batch_norm_forward

    def gradients(layer: Callable[..., Tensor], leaves: list[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(*leaves, EPS), leaves, grad_y)

    worst = Worst()
    for case in range(CASES):
        x = activations(rng, convolutional=case % 2 == 1)
        leaves = [v.requires_grad_() for v in (x, *gamma_beta(rng, x.shape[1]))]
        grad_y = normal(rng, *x.shape)
        closed = gradients(batch_norm, leaves, grad_y)
        automatic = gradients(lambda *inputs: forward(*inputs).y, leaves, grad_y)
        native = gradients(kernel, leaves, grad_y)
        single = gradients(kernel, [v.detach().float().requires_grad_() for v in leaves], grad_y.float())
        worst.see(
            error_automatic=max(map(disagreement, closed, automatic)),
            error_kernel=max(map(disagreement, closed, native)),
            float32_error=max(map(disagreement, single, closed)),
        )
        for _ in range(4):
            along = [normal(rng, *v.shape) for v in leaves]
            moved = [torch.complex(v.detach(), 1e-30 * d) for v, d in zip(leaves, along, strict=True)]
            derivative = (grad_y * forward(*moved, EPS).y.imag / 1e-30).sum()
            terms = torch.cat([(g * d).flatten() for g, d in zip(closed, along, strict=True)])
            # The sum may come out near 0 by chance, so the error is a share of what is summed.
            worst.see(error_complex_step=((derivative - terms.sum()).abs() / terms.abs().sum()).item())
    return worst.total(), []


def identity(rng: Generator) -> tuple[Worst, Rows]:
    """gamma = sqrt(Var[x]) and beta = E[x] give x back: with eps = 0, or with eps under gamma's root too."""
    worst = Worst()
    for case in range(CASES):
        x = activations(rng, convolutional=case % 2 == 1)
        mean, var = (torch.tensor(moments, dtype=x.dtype) for moments in moments_by_hand(x))
        worst.see(
            error_no_eps=disagreement(batch_norm(x, var.sqrt(), mean, 0.0), x),
            error_eps_in_gamma=disagreement(batch_norm(x, (var + EPS).sqrt(), mean, EPS), x),
            departure_as_printed=disagreement(batch_norm(x, var.sqrt(), mean, EPS), x),
        )
    return worst.total(), []


# --- Section 3.1: Algorithm 2
# ------------------------------------------------------------------------------------


def alg2_inference(rng: Generator) -> tuple[Worst, Rows]:
    """Population statistics, the frozen net and the folded net are those of a net worked by hand."""
    worst = Worst()
    for case in range(CASES):
        maps, units, size = integer(rng, 2, 5), integer(rng, 2, 8), integer(rng, 4, 7)
        first, second = norms.BatchNorm(maps, EPS), norms.ReferenceBatchNorm(units, EPS)
        # A linear map folds with a bias of its own and without.
        net = nn.Sequential(
            *(nn.Conv2d(2, maps, 3, bias=case % 2 == 0), first, nn.Sigmoid(), nn.Flatten()),
            *(nn.Linear(maps * (size - 2) ** 2, units, bias=case % 2 == 1), second, nn.Sigmoid()),
            nn.Linear(units, 3),
        ).double()
        net.requires_grad_(False)
        for parameter in net.parameters():
            parameter.copy_(normal(rng, *parameter.shape))
        batches = [normal(rng, 8, 2, size, size) for _ in range(integer(rng, 2, 5))]
        inputs = normal(rng, 5, 2, size, size)
        statistics = norms.population_statistics(net, batches)
        frozen = norms.frozen(net, statistics)

        seen, values = batches, inputs
        for start, index, layer in ((0, 1, first), (3, 5, second)):
            before, after = net[start:index], net[index + 1]
            seen, values = [before(x) for x in seen], before(values)
            moments = [moments_by_hand(x) for x in seen]
            m = seen[0].numel() // seen[0].shape[1]
            means, variances = (list(map(math.fsum, zip(*each, strict=True))) for each in zip(*moments, strict=True))
            means = [total / len(batches) for total in means]
            variances = [m / (m - 1) * total / len(batches) for total in variances]
            found = statistics[str(index)]
            worst.see(
                error_mean=disagreement(found.mean, torch.tensor(means, dtype=torch.float64)),
                error_variance=disagreement(found.var, torch.tensor(variances, dtype=torch.float64)),
            )
            learned = (layer.weight, layer.bias)
            seen = [after(normalized_by_hand(x, *learned, *own, EPS)) for x, own in zip(seen, moments, strict=True)]
            values = after(normalized_by_hand(values, *learned, means, variances, EPS))
        expected = net[-1](values)
        worst.see(
            error_frozen=disagreement(frozen(inputs), expected),
            error_folded=disagreement(norms.fold(frozen)(inputs), expected),
            # Frozen, an example's output does not depend on what else is in its batch.
            error_alone=disagreement(torch.cat([frozen(one) for one in inputs.split(1)]), expected),
        )
    return worst.total(), []


# --- Section 3.2: convolutions, and the bias
# ---------------------------------------------------------------------


def conv_statistics(rng: Generator) -> tuple[Worst, Rows]:
    """A feature map is normalised as one batch of m*p*q values, wherever they stand; so are its gradients."""

    def as_batch(v: Tensor) -> Tensor:  # (N, C, H, W) -> (N*H*W, C)
        return v.movedim(1, -1).flatten(0, 2)

    worst = Worst()
    for case in range(CASES):
        x = activations(rng, convolutional=True).requires_grad_()
        gamma, beta = (v.requires_grad_() for v in gamma_beta(rng, x.shape[1]))
        grad_y = normal(rng, *x.shape)
        # Momentum 1: the running statistics are the last batch's.
        layer = (norms.BatchNorm, norms.ReferenceBatchNorm)[case % 2](x.shape[1], EPS, momentum=1.0).double()
        layer.weight.data, layer.bias.data = gamma.detach().clone(), beta.detach().clone()
        y = layer(x)
        assert layer.running_var is not None
        means, variances = moments_by_hand(as_batch(x))
        m = as_batch(x).shape[0]
        unbiased = torch.tensor([m / (m - 1) * variance for variance in variances], dtype=x.dtype)
        expected = normalized_by_hand(as_batch(x.detach()), gamma, beta, means, variances, EPS)
        given = torch.autograd.grad(y, (x, layer.weight, layer.bias), grad_y)
        one_batch = norms.batch_norm_forward(as_batch(x), gamma, beta, EPS).y
        wanted = torch.autograd.grad(one_batch, (x, gamma, beta), as_batch(grad_y))
        worst.see(
            error_output=disagreement(as_batch(y), expected),
            error_gradient=max(map(disagreement, given, wanted)),
            error_running_var=disagreement(layer.running_var, unbiased),
        )
        # The same values at other places and in other examples: the same results, moved along.
        places = torch.randperm(m, generator=rng)
        n, c, h, w = x.shape
        shuffled = as_batch(x.detach())[places].view(n, h, w, c).movedim(-1, 1)
        worst.see(error_places=disagreement(as_batch(layer(shuffled)), expected[places]))
    return worst.total(), []


def bias_redundant(rng: Generator) -> tuple[Worst, Rows]:
    """BN(Wu + b) = BN(Wu), and b has no gradient."""
    worst = Worst()
    for case in range(CASES):
        apply, weight, u = linear_map(rng, convolutional=case % 2 == 1)
        wu = apply(weight, u)
        gamma, beta = gamma_beta(rng, wu.shape[1])
        size = 10 ** uniform(rng, -2, 2, wu.shape[1])
        bias = (size * normal(rng, wu.shape[1])).requires_grad_()
        biased = wu + bias.view(1, -1, *[1] * (wu.dim() - 2))
        y = batch_norm(biased, gamma, beta, EPS)
        grad_bias, grad_biased = torch.autograd.grad(y, (bias, biased), normal(rng, *y.shape))
        # What should cancel in b's gradient, summed without its signs.
        summed = grad_biased.abs().transpose(0, 1).flatten(1).sum(1)
        worst.see(
            error_output=disagreement(y, batch_norm(wu, gamma, beta, EPS)),
            error_gradient=(grad_bias.abs() / summed).max().item(),
        )
    return worst.total(), []


# --- Section 3.3: the scale of the weights
# -----------------------------------------------------------------------


def scale_invariance(rng: Generator) -> tuple[Worst, Rows]:
    """BN((aW)u) = BN(Wu); u's gradient is the same; the gradient of aW is 1/a times that of W.

    Exact at eps = 0, for a from 1e-6 to 1e6. At eps = 1e-5 a small a brings the variance down towards eps,
    and all three depart: that is measured at four values of a.
    """
    worst = Worst()
    for case in range(CASES):
        apply, weight, u = linear_map(rng, convolutional=case % 2 == 1)
        u.requires_grad_()
        gamma, beta = gamma_beta(rng, weight.shape[0])
        grad_y = normal(rng, *apply(weight, u).shape)

        def scaled(
            a: float, eps: float, apply=apply, weight=weight, u=u, gamma=gamma, beta=beta, grad_y=grad_y
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Return the output and the gradients of u and of aW, the last one times a."""
            aw = (a * weight).requires_grad_()
            y = batch_norm(apply(aw, u), gamma, beta, eps)
            grad_u, grad_aw = torch.autograd.grad(y, (u, aw), grad_y)
            return y, grad_u, a * grad_aw

        plain = scaled(1.0, 0.0)
        for a in (10 ** uniform(rng, -6, 6, 4)).tolist():
            output, grad_u, grad_w = map(disagreement, scaled(a, 0.0), plain)
            worst.see(error_output=output, error_gradient_u=grad_u, error_gradient_w=grad_w)
        plain = scaled(1.0, EPS)
        for a in (0.01, 0.1, 10, 100):
            worst.see(**{f"departure_a_{a:g}": max(map(disagreement, scaled(a, EPS), plain))})
    return worst.total(), []


# --- Section 2: statistics outside the gradient
# -------------------------------------------------------------------


def detached_statistics(rng: Generator, steps: int = 1000, rate: float = 0.01) -> tuple[Worst, Rows]:
    """A gradient step that ignores that E[x] depends on b moves b for ever, and the loss never.

    The paper's layer: x = u + b, x_hat = x - E[x], and the loss is half the mean of (x_hat - t)^2. Ignoring
    E[x], its derivative by b is mean(x_hat - t) = -mean(t) whatever b is, so that each step adds rate *
    mean(t) to b; the true derivative is 0. The scaled variant, x = a*u + b and x_hat = (x - E[x]) /
    sqrt(Var[x]), believes that it can make x_hat smaller through a: |a| shrinks, and as b's derivative grows
    as 1/|a|, b runs away faster. The targets are uncorrelated with u, so that the loss is the same on both
    sides of a = 0, and can only stay fixed.
    """
    u, t = normal(rng, 64, 1), normal(rng, 64, 1)
    u -= u.mean()
    t -= t.mean() + u * (u * t).sum() / (u * u).sum()
    target_mean = float(uniform(rng, 0.5, 1.5)) * (-1) ** integer(rng, 0, 1)
    t += target_mean

    def descend(
        normalize: Callable[[Tensor], Tensor], learns_gain: bool
    ) -> tuple[list[float], list[float], list[float]]:
        """Return bias, gain and loss before each step and after the last."""
        bias, gain = torch.zeros((), dtype=t.dtype), torch.ones((), dtype=t.dtype)
        learned = [v.requires_grad_() for v in ((bias, gain) if learns_gain else (bias,))]
        track: list[tuple[float, float, float]] = []
        for _ in range(steps + 1):
            loss = (normalize(gain * u + bias) - t).square().mean() / 2
            track.append((bias.item(), gain.item(), loss.item()))
            with torch.no_grad():
                for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                    parameter -= rate * gradient
        biases, gains, losses = map(list, zip(*track, strict=True))
        return biases, gains, losses

    detached = norms.DetachedBatchNorm(1, eps=0.0, affine=False).double()
    whole = norms.ReferenceBatchNorm(1, eps=0.0, affine=False).double()
    bias, _, loss = descend(lambda x: x - x.mean().detach(), learns_gain=False)
    bias_true, _, loss_true = descend(lambda x: x - x.mean(), learns_gain=False)
    bias_scaled, gain_scaled, loss_scaled = descend(detached, learns_gain=True)
    bias_scaled_true, _, loss_scaled_true = descend(whole, learns_gain=True)

    def change(losses: list[float]) -> float:
        return max(abs(value / losses[0] - 1) for value in losses)

    step = rate * target_mean
    moves = [after - before for before, after in itertools.pairwise(bias)]
    worst = Worst()
    worst.see(
        error_step=max(abs(move / step - 1) for move in moves),
        error_loss=change(loss),
        error_true_gradient=max(map(abs, bias_true)) / abs(bias[-1]),
    )
    worst.total()
    worst |= {
        "bias_growth_per_step": abs(bias[-1]) / steps,
        "bias_growth_predicted": abs(step),
        "loss_change": change(loss),
        "scaled_bias_ratio": abs(bias_scaled[-1] / bias[-1]),
        "scaled_smallest_gain": min(map(abs, gain_scaled)),
        "scaled_loss_change": change(loss_scaled),
        "scaled_true_bias": max(map(abs, bias_scaled_true)),
    }
    columns = {"b": bias, "loss": loss, "b_true": bias_true, "loss_true": loss_true}
    columns |= {"b_scaled": bias_scaled, "gain_scaled": gain_scaled, "loss_scaled": loss_scaled}
    columns |= {"b_scaled_true": bias_scaled_true, "loss_scaled_true": loss_scaled_true}
    rows = [
        {"step": k} | {name: column[k] for name, column in columns.items()}
        for k in range(0, steps + 1, max(1, steps // 100))
    ]
    return worst, rows


# --- records
# ------------------------------------------------------------------------------------------------------

CLAIMS: dict[str, Callable[[Generator], tuple[Worst, Rows]]] = {
    "alg1-forward": alg1_forward,
    "alg1-backward": alg1_backward,
    "alg2-inference": alg2_inference,
    "identity": identity,
    "conv-statistics": conv_statistics,
    "bias-redundant": bias_redundant,
    "scale-invariance": scale_invariance,
    "detached-statistics": detached_statistics,
}


def run(claim: str, seed: int, scale: str, root: Path) -> dict[str, float] | None:
    """Measure ``claim`` and write its record; return the summary, or ``None`` if a record was there already.

    Raises :class:`UserError` if the record there is of another configuration.
    """
    directory = records.run_directory(root, scale, "exact", claim, seed)
    config = {"study": "exact", "claim": claim, "seed": seed, "cases": CASES, "eps": EPS}
    if (record := records.read_run_json(directory)) is not None:
        if record["config"] != config:
            changed = sorted(key for key, value in config.items() if record["config"].get(key) != value)
            raise UserError(f"{directory}: found a record with other {', '.join(changed)}; remove it to run again")
        return None
    rules = digests_for_study("exact")
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    summary, rows = CLAIMS[claim](generator(seed, f"exact/{claim}"))
    text = "".join(map(records.json_line, rows)).encode()
    record = {
        "study": "exact",
        "arm": claim,
        "seed": seed,
        "scale": scale,
        "status": "completed",
        "reason": None,
        "steps_done": int(rows[-1]["step"]) if rows else CASES,
        "summary": summary,
        "config": config,
        "choices": {},
        "rules": rules,
        "files": {records.CURVES: records.digest(text)} if rows else {},
        "environment": environment("cpu", 1),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    with writing(directory, "--out (make: RESULTS=...)"):
        directory.mkdir(parents=True, exist_ok=True)
        if rows:
            records.atomic_write(directory / records.CURVES, text)
        records.write_run_json(directory, record)
    return summary


@one_line("error: ")
def main(out: Path, scale: str, seeds: int) -> int:
    """Measure every claim that has no record yet, print a line each, and return the exit code."""
    torch.set_num_threads(1)  # the cases are small
    if seeds < 1:
        raise UserError(f"found --seeds {seeds}, expected 1 or more")
    for seed in range(seeds):
        for claim in CLAIMS:
            summary = run(claim, seed, scale, out)
            outcome = "complete already" if summary is None else f"error {summary['error']:.1e}"
            print(f"{claim:<20} seed {seed}  {outcome}", flush=True)
    return 0


if ARGUMENTS is not None:
    sys.exit(main(ARGUMENTS.out, ARGUMENTS.scale, ARGUMENTS.seeds))

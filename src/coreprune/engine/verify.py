"""Recompute what is guaranteed of a smaller network from the tensors of both networks alone.

Neither the plan nor the selector is believed. What the smaller network says of itself, which unit of the
dense one each of its units was, is only a hint: it is compared with the tensors, and a wrong hint makes
the bounds worse, never false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.engine.local import Progress, generator_for, image_radius, layer_at, readers_at
from coreprune.errors import InvalidInputError
from coreprune.maths.certificate import chebyshev, clopper_pearson, relative_error
from coreprune.maths.domain import Ball, Box, OneLayer
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.propagate import Pair, difference_energy
from coreprune.maths.worst_case import WorstCase, worst_case
from coreprune.model.site import Inspection, Site
from coreprune.model.text import digits
from coreprune.model.untouched import evaluating
from coreprune.priors.gaussian import Gaussian, Propagation

__all__ = ["FEWEST", "SiteCertificate", "Verification", "certify", "exceeded"]


FEWEST = 100  # inputs on which a share of a hundredth can be counted


@dataclass(frozen=True)
class SiteCertificate:
    """What is known of one site's readers, dense against small.

    Attributes:
        site: its name. units, kept: before and after.
        relative_error: √(E‖y − ŷ‖² / Σ Var y) under the prior, all cuts up to here included.
        mean_square: the largest E (y_i − ŷ_i)² over the outputs i.
        spread: √ of the largest Var y_i, the size of what the readers get under the prior.
        exact: whether the mean square is exact: it is at the network's first hidden layer, and rests on the
            Gaussian closure behind it.
        domain: where the worst case is taken, of the site's own inputs, this site alone being cut.
        upper: proved bound of |y_i − ŷ_i| over the domain, the largest over i; None if not computed.
        lower: an error that was found there.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = cp.verify(net, cp.prune(net, units={"0": 5}), samples=500).sites[0]
        >>> found.site, found.units, found.kept, found.lower <= found.upper
        ('0', 8, 5, True)
    """

    site: str
    units: int
    kept: int
    relative_error: float
    mean_square: float
    spread: float
    exact: bool
    domain: str
    upper: float | None = None
    lower: float | None = None

    @property
    def ratio(self) -> float | None:
        """Upper / lower: by what factor at most the worst-case bound is too large."""
        if self.upper is None or self.lower is None:
            return None
        return 1.0 if self.upper == 0 else self.upper / self.lower if self.lower > 0 else math.inf


@dataclass(frozen=True)
class Verification:
    """Everything that `verify` found.

    Attributes:
        sites: one certificate for each site that shrank.
        prior: the law of the inputs that mean squares speak of.
        domain: the inputs that the end-to-end bound speaks of.
        tail: what follows the last Linear layer; the bound and the prediction do not cover it.
        end_bound: proved bound of |network(x) − small(x)| over the domain, the largest over the outputs of the
            last Linear layer; None if the worst case was not asked.
        end_predicted: relative error of those outputs under the prior, by Gaussian closure; None where the network
            is no stack.
        end_measured: relative error of the network's outputs, measured on samples.
        samples: how many.
        exceed: ε: |network(x) − small(x)| ≤ ε at every output,
        exceed_probability: but for inputs of at most this probability under the prior,
        delta: with confidence 1 − δ.
        data_used: whether the samples were the user's.
        independent: whether the samples are independent draws of one law. Else nothing is said of further inputs:
            `exceed_probability` is the share of the samples themselves.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> checked = cp.verify(net, cp.prune(net, units={"0": 8}), samples=500)  # nothing was cut
        >>> checked.end_bound, checked.exceed, checked.samples
        (0.0, 0.0, 500)
    """

    sites: tuple[SiteCertificate, ...]
    prior: str
    domain: str
    tail: str
    end_bound: float | None
    end_predicted: float | None
    end_measured: float
    samples: int
    exceed: float
    exceed_probability: float
    delta: float
    data_used: bool
    independent: bool = True

    def __str__(self) -> str:
        """The statements, one below the other."""
        return "\n".join(f"- {line}" for line in self.statements())

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def statements(self) -> list[str]:
        """One sentence for each guarantee: what, for which inputs, with what confidence, against what size."""
        lines = []
        for c in self.sites:
            close = "exactly" if c.exact else "under the Gaussian closure"
            lines.append(
                f"site {c.site}, {c.units} -> {c.kept} units: for {self.prior}, what the units that stay read from it "
                f"is off by {c.relative_error:.1%} of its spread in the root mean square ({close}), so no single "
                f"value is off by more than {digits(chebyshev(c.mean_square, self.delta))} in over {self.delta:.0%} of "
                f"them (Chebyshev); these values spread by {digits(c.spread)}."
            )
            if c.upper is not None and c.lower is not None:
                lines.append(
                    f"site {c.site}, worst case: cutting it alone changes no such value by more than {digits(c.upper)} "
                    f"for any input of its layer in the {c.domain}, certain but for rounding at run time; "
                    f"{digits(c.lower)} was found there (ratio {c.ratio:.3f})."
                )
        if self.end_bound is not None:
            whole = f"the network before {self.tail}" if self.tail else "the whole network"
            lines.append(
                f"{whole}, worst case: no output changes by more than {digits(self.end_bound)} for any "
                f"input in the {self.domain}, certain but for rounding at run time."
            )
        many = f"{self.samples:,} "
        source = many + ("inputs that were given" if self.data_used else "inputs drawn from the prior")
        if not self.sites and not self.data_used:  # else they say what it is
            source = self.prior if self.prior.startswith(many) else f"{many}inputs ({self.prior})"
        predicted = "" if self.end_predicted is None else f" ({self.end_predicted:.1%} was predicted)"
        off = f"the outputs are off by {self.end_measured:.1%} of their spread{predicted}"
        if self.independent:
            tail = (
                f"with confidence {1 - self.delta:.0%} by more than {digits(self.exceed)} at some output for at most "
                f"{self.exceed_probability:.2%} of such inputs (Clopper-Pearson)."
            )
        else:
            tail = (
                f"by more than {digits(self.exceed)} at some output for {self.exceed_probability:.2%} of these inputs, "
                "which are not independent draws: that is counted, and no bound for others."
            )
        lines.append(f"the whole network, on {source}: {off}, and {tail}")
        return lines


def certify(
    dense_model: nn.Module,
    small_model: nn.Module,
    found: Inspection,
    claims: Mapping[str, Coreset],
    *,
    prior: Gaussian,
    domain: Ball | Box,
    inputs: Tensor | None = None,
    samples: int = 10_000,
    delta: float = 0.05,
    worst: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Check a smaller network against the dense one.

    Args:
        dense_model: the network before. small_model: after.
        found: the dense network's sites.
        claims: for each site that shrank, which dense units (or combinations of them) the small ones are
            said to be. Whatever is claimed, the statements are true; better claims make them stronger.
        prior: law of the inputs for the mean squares.
        domain: of the network's inputs, for the worst case.
        inputs: the user's inputs to measure on, (N, …); otherwise the prior is sampled.
        samples: how many.
        delta: probability with which a statement may fail.
        worst: also compute worst cases, which takes longest.
        seed: of samples and searches.
        progress: called before each site.

    Raises:
        InvalidInputError: the network is no stack that can be followed, or the two do not belong together.
    """
    dense, small = dense_model.state_dict(), small_model.state_dict()
    chain = [site for site in found.chain if site is not None]
    if len(chain) < len(found.chain) or not chain:
        raise InvalidInputError(
            "the network was cut without example inputs, and is no stack of Linear layers and known activations all "
            "the way: cut it with them (example_inputs=, on the command line --input), and verify measures the result"
        )
    radius = _radius(domain)
    walk = Propagation(prior.inputs(found.features, radius))
    certificates: list[SiteCertificate] = []
    reach: Ball | Box = domain
    error = torch.zeros(0, dtype=torch.float64)  # proved, of what each unit of the small network's next site reads
    for i, site in enumerate(chain):
        if progress:
            progress(i, len(chain), site.name)
        before, after = layer_at(site, dense, radius), layer_at(site, small, radius)
        claim = claims.get(site.name) or Coreset(torch.arange(before.units), torch.ones(before.units))
        _check_claim(site, before, after, claim)
        later = claims.get(chain[i + 1].name) if i + 1 < len(chain) else None
        W, c = _read(later, *readers_at(site, dense))
        W_small, c_small = readers_at(site, small)
        case = None
        if worst:
            rows = (after.incoming, after.bias) if i == 0 else _read(claim, before.incoming, before.bias)
            hint = claim.indices if claim.incoming is None else None
            case = worst_case(
                OneLayer(before.incoming, before.bias, W, c, site.phi),
                OneLayer(*rows, W_small, c_small, site.phi),
                hint,
                reach,
                generator_for(seed, site.name),
            )
            carried = W_small.abs() @ error * site.phi.lipschitz if i else 0.0
            error = (case.upper + carried) * (1 + 1e-9)
        walk = walk.beyond(before, after)
        if site.name in claims:
            outputs = walk.inputs.linear(W, c, W_small, c_small)
            certificates.append(_certificate(site, before.units, after.units, outputs, i == 0, reach, case))
        radius = image_radius(before) * (1 + 1e-9)
        reach = Ball(radius)
    if progress:
        progress(len(chain), len(chain), "")
    ends = walk.inputs.linear(*readers_at(chain[-1], dense), *readers_at(chain[-1], small))
    own = ends.overall()[1].diagonal()[: ends.split]
    predicted = relative_error(difference_energy(ends), own)
    x = _sampled(prior, found.features, _radius(domain), samples, seed) if inputs is None else inputs
    measured, exceed, probability = _measure(dense_model, small_model, x, delta)
    return Verification(
        tuple(certificates),
        prior.named(found.features, _radius(domain)),
        _named(domain),
        found.tail,
        float(error.max()) if worst else None,
        predicted,
        measured,
        len(x),
        exceed,
        probability,
        delta,
        inputs is not None,
    )


def _read(claim: Coreset | None, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the dense network that the small one's units claim to be: selected, or combined."""
    if claim is None:
        return rows, bias
    if claim.incoming is None:
        return rows[claim.indices], bias[claim.indices]
    shift = 0.0 if claim.shift is None else claim.shift
    return claim.incoming.T @ rows, claim.incoming.T @ bias + shift


def _check_claim(site: Site, before: Layer, after: Layer, claim: Coreset) -> None:
    if claim.units != after.units or (claim.units and int(claim.indices.max()) >= before.units):
        raise InvalidInputError(
            f"site {site.name} has {after.units} units, and is said to keep {claim.units} of {before.units}: "
            "verify a network against the dense one it was made from"
        )


def _certificate(
    site: Site, units: int, kept: int, outputs: Pair, exact: bool, reach: Ball | Box, case: WorstCase | None
) -> SiteCertificate:
    difference = difference_energy(outputs)
    variance = outputs.overall()[1].diagonal()[: outputs.split]
    return SiteCertificate(
        site.name,
        units,
        kept,
        relative_error(difference, variance),
        float(difference.max()),
        math.sqrt(max(float(variance.max()), 0.0)),
        exact,
        _named(reach),
        None if case is None else float(case.upper.max()),
        None if case is None else float(case.lower.max()),
    )


def _measure(dense: nn.Module, small: nn.Module, x: Tensor, delta: float) -> tuple[float, float, float]:
    """Relative error on inputs, and what `exceeded` says of the largest error at each."""
    if len(x) < FEWEST:
        raise InvalidInputError(f"{len(x)} inputs are too few to measure on: give at least {FEWEST}")
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError("the inputs hold NaN or infinite values: give finite inputs")
    try:
        with evaluating(dense, small), torch.no_grad():
            y, z = (_run(model, x).double().flatten(1) for model in (dense, small))
    except (RuntimeError, IndexError) as error:
        raise InvalidInputError(
            f"inputs of shape {tuple(x.shape)} do not fit the network: give inputs= as the network takes them"
        ) from error
    relative = relative_error((y - z).square().mean(0), y.var(0, unbiased=False))
    return relative, *exceeded((y - z).abs().amax(1), delta)


def exceeded(errors: Tensor, delta: float | None) -> tuple[float, float]:
    """(ε, p): an input's error is more than ε with probability at most p, at confidence 1 − δ.

    ε is the order statistic that a hundredth of the samples exceed. That it is taken from the same samples
    does not hurt: the share of the law beyond an order statistic is a Beta variable (Wilks 1941), and its
    quantile is Clopper and Pearson's.

    Args:
        errors: one for each input, (N,).
        delta: δ; None where the inputs are not independent, and p is the share of them that exceeds ε.
    """
    ordered = errors.sort().values
    beyond = len(ordered) // 100
    level = ordered[len(ordered) - 1 - beyond]
    if delta is None:
        return float(level), float((errors > level).double().mean())
    return float(level), clopper_pearson(beyond, len(ordered), delta)


def _run(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output on x, given in the model's own precision."""
    kind = next((parameter.dtype for parameter in model.parameters()), x.dtype)
    output = model(x.to(kind))
    if not isinstance(output, Tensor):
        raise InvalidInputError(f"the network returns a {type(output).__name__}, and one tensor can be compared")
    return output


def _sampled(prior: Gaussian, features: int, radius: float, count: int, seed: int) -> Tensor:
    """Inputs drawn from the prior, (count, features), float32."""
    generator = generator_for(seed, "samples")
    parts = prior.inputs(features, radius).components
    pick = torch.randint(len(parts), (count,), generator=generator)
    mean = torch.stack([part.mean for part in parts])[pick]
    std = torch.stack([part.covariance.sqrt() for part in parts])[pick]
    return (mean + std * torch.randn(count, features, generator=generator, dtype=torch.float64)).float()


def _radius(domain: Ball | Box) -> float:
    """The radius of a ball around the origin that holds the domain."""
    if isinstance(domain, Ball):
        return domain.radius
    return float(torch.maximum(domain.lower.abs(), domain.upper.abs()).norm()) * (1 + 1e-9)


def _named(domain: Ball | Box) -> str:
    return f"ball of radius {domain.radius:.4g}" if isinstance(domain, Ball) else "box given"

"""What every method that chooses units must keep to, on layers that are made here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from coreprune.errors import CorepruneError
from coreprune.maths.activation import activation
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.methods import Method
from coreprune.maths.propagate import Component, Law, Pair, law_of
from coreprune.testing.common import Checker, Conformance, other_global_state, same

__all__ = ["check_method"]

SEEDS = 8
#: mean square error that redundant units may cost, as a share of the outputs' energy
FREE = {torch.float64: 1e-6, torch.float32: 1e-4}


def check_method(method: Method) -> Conformance:
    """Try a method on small layers of several activations, in both precisions.

    It must return exactly as many distinct units as were asked for, in ascending order; finite tensors that fit the
    layer, in its precision or in float64; what computes the same as the layer where all units are kept; the same for
    the same generator and, if it says that it is not random, for every generator. It must leave the layer and the
    global random states alone. With `law=True`, duplicate, dead and constant units must cost nothing.

    Args:
        method: the method, in `METHODS` or not.

    Returns:
        What was checked.

    Raises:
        ConformanceError: the first thing that is wrong.

    Example:
        >>> from coreprune.maths.methods import METHODS
        >>> print(check_method(METHODS["magnitude"]).checked[0])
        k distinct units in ascending order
        >>> def descending(layer, units, generator):
        ...     kept = torch.arange(layer.units - 1, -1, -1)[:units]
        ...     return Coreset(kept, torch.ones(units, dtype=layer.bias.dtype))
        >>> check_method(Method("last", descending, "the last units"))
        Traceback (most recent call last):
        coreprune.testing.common.ConformanceError: method 'last': it kept units [11, 10, ... in ascending order
    """
    checker = Checker(f"method {method.name!r}")
    checker.require(method.name and method.about, "it has no name or no line about it", "give both")
    for layer in _layers(method.law):
        for units in (1, layer.units // 2, layer.units - 1, layer.units):
            coreset = _selected(checker, method, layer, units)
            checker.require(
                method.merges or method.turns or coreset.incoming is None,
                "it mixes units before their activation",
                "say so with merges=True",
            )
            _form(checker, layer, coreset, units)
        _identity(checker, layer, coreset)
    _determined(checker, method)
    if method.law:
        for dtype in FREE:
            _redundant(checker, method, dtype)
    return checker.result()


def _layer(n: int, name: str, dtype: torch.dtype, law: bool, seed: int = 0) -> Layer:
    """A layer of n units between 4 inputs and 3 outputs, with the law of its units for standard inputs if asked."""
    g = Generator().manual_seed(seed)
    P, b, W = (torch.randn(*size, generator=g, dtype=torch.float64).to(dtype) for size in ((n, 4), (n,), (3, n)))
    layer = Layer(P, b, W, activation(name), 2.0)
    return replace(layer, law=_law(layer)) if law else layer


def _law(layer: Layer) -> Law:
    """The law of a layer's units for standard inputs; of a float32 layer, in float32."""
    P, b = layer.incoming, layer.bias
    d = P.shape[1]
    inputs = Pair((Component(1.0, P.new_zeros(d), P.new_ones(d)),))
    return law_of(inputs.linear(P, b), layer.activation)


def _layers(law: bool) -> Iterator[Layer]:
    for name in ("relu", "tanh", "gelu", "identity"):
        yield _layer(12, name, torch.float64, law)
    yield _layer(12, "relu", torch.float32, law)
    yield _layer(2, "relu", torch.float64, law)
    yield _layer(30, "silu", torch.float64, law, seed=1)


def _tensors(layer: Layer) -> list[Tensor]:
    found = [layer.incoming, layer.bias, layer.outgoing]
    law = layer.law
    if law is not None:
        found += [law.moments.mean, law.moments.covariance]
        found += [value for value in (law.target, law.cross, law.own) if value is not None]
        if law.pair is not None:
            found += [value for c in law.pair.components for value in (c.mean, c.covariance)]
    return found


def _selected(checker: Checker, method: Method, layer: Layer, units: int, seed: int = 0) -> Coreset:
    """One run, beside which nothing may change."""
    before = [tensor.clone() for tensor in _tensors(layer)]
    with checker.untouched_globals("draw from the generator that is given"):
        try:
            coreset = method.select(layer, units, Generator().manual_seed(seed))
        except CorepruneError:
            raise
        except Exception as error:
            asked = f"{units} of {layer.units} units of {layer.activation.name}, {layer.bias.dtype}"
            checker.fail(f"asked for {asked} it raised {error!r}", "return a coreset, or raise a CorepruneError")
    checker.require(
        isinstance(coreset, Coreset), f"it returned a {type(coreset).__name__}", "return a coreprune Coreset"
    )
    untouched = all(same(a, b) for a, b in zip(before, _tensors(layer), strict=True))
    checker.require(untouched, "it changed the layer that it was given", "work on copies")
    return coreset


def _form(checker: Checker, layer: Layer, coreset: Coreset, units: int) -> None:
    """Indices, shapes, finite numbers, precision."""
    n, kept = layer.units, coreset.indices
    checker.require(
        kept.dtype == torch.int64 and kept.dim() == 1,
        f"indices are {kept.dtype} of shape {tuple(kept.shape)}",
        "give int64 of shape (k,)",
    )
    listed = kept.tolist()
    checker.require(len(listed) == units, f"asked for {units} units it kept {len(listed)}", "keep exactly k")
    checker.require(
        listed == sorted(set(listed)) and set(listed) <= set(range(n)),
        f"it kept units {listed} of {n}",
        "keep distinct units of the layer in ascending order",
    )
    checker.passed("k distinct units in ascending order")
    turned = coreset.incoming is not None
    allowed = {
        "mix": {(n, units)} if turned else {(n, units), (units,)},
        "offset": {(n,)},
        "incoming": {(n, units)},
        "shift": {(units,)},
    }
    for name, shapes in allowed.items():
        value = getattr(coreset, name)
        if value is None:
            continue
        checker.require(tuple(value.shape) in shapes, f"{name} has shape {tuple(value.shape)}", f"give {min(shapes)}")
        checker.require(torch.isfinite(value).all(), f"{name} holds NaN or infinite values", "give finite numbers")
        kinds = {layer.bias.dtype, torch.float64}
        checker.require(
            value.dtype in kinds,
            f"{name} is {value.dtype} for a layer in {layer.bias.dtype}",
            "compute in the precision of the layer, or in float64",
        )
        checker.require(not value.requires_grad, f"{name} requires a gradient", "detach it")
    checker.passed("shapes, finite, precision")


def _outputs(layer: Layer, coreset: Coreset, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense and cut outputs, in float64."""
    wide = Layer(layer.incoming.double(), layer.bias.double(), layer.outgoing.double(), layer.activation, layer.radius)
    offset, incoming, shift = (
        None if value is None else value.double() for value in (coreset.offset, coreset.incoming, coreset.shift)
    )
    exact = Coreset(coreset.indices, coreset.mix.to(torch.float64), offset, incoming, shift)
    return wide(x), exact.apply(wide, x)


def _inputs(layer: Layer, count: int) -> Tensor:
    return torch.randn(count, layer.incoming.shape[1], generator=Generator().manual_seed(9), dtype=torch.float64)


def _identity(checker: Checker, layer: Layer, coreset: Coreset) -> None:
    """All units kept compute what the layer computes."""
    dense, cut = _outputs(layer, coreset, _inputs(layer, 200))
    gap = float((dense - cut).abs().max() / dense.abs().max())
    precision = 1e3 * torch.finfo(layer.bias.dtype).eps
    checker.require(
        gap <= precision,
        f"with all {layer.units} units of {layer.activation.name} kept, the outputs differ by {gap:.1e} of the largest",
        "be the identity where all are kept",
    )
    checker.passed("the identity where all are kept")


def _determined(checker: Checker, method: Method) -> None:
    """By the generator alone, and used exactly if the method says that it is random."""
    layer = _layer(40, "relu", torch.float64, method.law, seed=2)
    first = _selected(checker, method, layer, 10)
    with other_global_state(77):
        again = _selected(checker, method, layer, 10)
    names = ("indices", "mix", "offset", "incoming", "shift")
    repeated = all(same(getattr(first, name), getattr(again, name)) for name in names)
    checker.require(
        repeated, "the same generator gave two results", "draw from the generator that is given, and only from it"
    )
    checker.passed("determined by the generator")
    results = [_selected(checker, method, layer, 10, seed) for seed in range(SEEDS)]
    varies = any(not all(same(getattr(r, name), getattr(first, name)) for name in names) for r in results)
    said = "random=True" if method.random else "random=False"
    other = f"{SEEDS} generators gave {'different results' if varies else 'one result'}"
    checker.require(varies == method.random, f"it says {said}, but {other}", "say what it is, or use the generator")
    checker.passed("random exactly if it says so")
    checker.passed("layer and global random states left alone")


def _redundant(checker: Checker, method: Method, dtype: torch.dtype) -> None:
    """Four units that matter among duplicates, dead and constant ones: keeping four loses nothing."""
    few = _layer(4, "relu", dtype, law=False, seed=3)
    P = torch.cat([few.incoming, few.incoming[[0, 2]], few.incoming[:1] / 1e3, 0 * few.incoming[:1]])
    b = torch.cat([few.bias, few.bias[[0, 2]], few.bias.new_tensor([-50.0, 0.5])])
    W = torch.cat([few.outgoing, few.outgoing[:, [1, 3]], few.outgoing[:, :1], few.outgoing[:, 1:2]], 1)
    order = torch.randperm(8, generator=Generator().manual_seed(5))
    layer = Layer(P[order], b[order], W[:, order], few.activation, few.radius)
    layer = replace(layer, law=_law(layer))
    coreset = _selected(checker, method, layer, 4)
    _form(checker, layer, coreset, 4)
    dense, cut = _outputs(layer, coreset, _inputs(layer, 4000))
    share = float((dense - cut).square().sum() / (dense - dense.mean(0)).square().sum())
    checker.require(
        share <= FREE[dtype],
        f"of 8 units two are duplicates, one is dead and one constant, and keeping 4 ({dtype}) costs "
        f"{100 * math.sqrt(share):.2g} % of the outputs' spread",
        "keep one of each kind that matters, give it the duplicate's weight, and put constants into the offset",
    )
    checker.passed("duplicate, dead and constant units cost nothing")

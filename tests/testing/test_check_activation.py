"""Our activations pass the check that is shipped, and one that lies about any one thing does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import CASES, Case

from coreprune.maths.activation import ACTIVATIONS, Activation, Spline, activation
from coreprune.testing import ConformanceError, check_activation


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ours_pass(case: Case):
    found = check_activation(case.phi, case.reference)
    assert "equal to the reference" in found.checked and "chords and worst cases" in found.checked
    assert ("homogeneous" in found.checked) == case.phi.homogeneous
    assert found.refused == ()


def test_every_one_of_ours_is_checked():
    assert {case.name for case in CASES} == set(ACTIVATIONS)


class Backwards(torch.autograd.Function):
    """tanh whose gradient is twice what it should be."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.tanh()

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return 2 * g * (1 - z.tanh() ** 2)


TANH, RELU, GELU, HARDSWISH = (activation(name) for name in ("tanh", "relu", "gelu", "hardswish"))


def own(function, base=TANH, **facts) -> Activation:
    return replace(base, name="own", function=function, **facts)


WRONG = {
    "a Lipschitz constant that is too small": (replace(TANH, lipschitz=0.99), "lipschitz=0.99, but"),
    "a Lipschitz constant rounded down": (replace(GELU, lipschitz=1.128904), "lipschitz=1.128904, but"),
    "no Lipschitz constant without a jump": (replace(TANH, lipschitz=math.inf), "φ has no jump"),
    "a Lipschitz constant for a jump": (
        replace(activation("binary_step"), name="own", lipschitz=1.0), "lipschitz=1, but"),
    "curvature that is too small": (replace(TANH, curvature=0.7), "curvature=0.7, but"),
    "no curvature at all": (replace(TANH, curvature=0.0), "curvature=0|slope jumps"),
    "a knot that is not said": (replace(RELU, knots=()), "no knot"),
    "an extremum that is not said": (replace(GELU, extrema=()), "turns near -0.75"),
    "an extremum that is none": (replace(TANH, extrema=(0.3,)), "does not turn"),
    "an extremum beside its place": (replace(GELU, extrema=(-0.78,)), "turns near"),
    "an extremum that is not exact": (
        own(lambda z: 1e3 * (z - 0.3) ** 2 / (1 + (z - 0.3) ** 2), lipschitz=650.0, curvature=2001.0, extrema=(0.3007,),
            scale=3.0), "range over|envelope|still bends"),
    "homogeneous where it is not": (replace(TANH, homogeneous=True), "homogeneous, but"),
    "homogeneous for no other reason than a kink": (
        own(lambda z: (z - 0.5).clamp(min=0), RELU, spline=None, knots=(0.5,)), "homogeneous, but"),
    "a scale that is too small": (replace(activation("softplus"), scale=0.1, name="own"), "still bends"),
    "a spline of another function": (replace(RELU, spline=Spline(jumps=((0.0, 0.0, 1.1, 0.0),))), "its spline is 1"),
    "a spline that jumps where no knot is": (
        replace(RELU, spline=Spline(jumps=((0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0)))), "no knots"),
    "parameters that make another": (
        replace(activation("leaky_relu", slope=0.3), parameters=()), "make another activation"),
    "parameters of another value": (
        replace(activation("softplus", beta=2.0), parameters=(("beta", 1.0),)), "make another activation"),
    "a gradient that is wrong": (own(Backwards.apply), "its gradient at"),
    "not elementwise": (own(lambda z: z.tanh() - z.tanh().mean()), "depends on the others"),
    "random": (own(lambda z: z.tanh() + 1e-3 * torch.rand_like(z)), "depends on the others"),
    "another dtype": (own(lambda z: z.double().tanh()), "became torch.float64"),
    "another shape": (own(lambda z: z.tanh().flatten()), "became"),
    "in place": (own(lambda z: z.tanh_() if not z.requires_grad else z.tanh()), "written into"),
    "overflow": (own(lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp())), "values at"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_lie_is_caught(name):
    phi, message = WRONG[name]
    with pytest.raises(ConformanceError, match=message) as caught:
        check_activation(phi)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"activation {phi.name!r}: ")


def test_values_beside_a_reference_are_caught():
    with pytest.raises(ConformanceError, match="and the reference"):
        check_activation(activation("gelu_tanh"), torch.nn.functional.gelu)


def wrong_range(self, lower, upper):
    """True of monotone functions alone."""
    ends = torch.stack([self.function(lower), self.function(upper)])
    return ends.amin(0), ends.amax(0)


def test_a_range_that_takes_the_function_for_monotone_is_caught():
    kind = type("Monotone", (Activation,), {"range": wrong_range})
    values = {name: getattr(GELU, name) for name in Activation.__dataclass_fields__}
    with pytest.raises(ConformanceError, match="range over"):
        check_activation(kind(**{**values, "name": "own"}))


def test_an_envelope_that_knows_the_edges_alone_is_caught():
    kind = type("Edges", (Activation,), {"envelope": lambda self, r: self.function(r).abs()})
    phi = activation("gaussian")
    values = {name: getattr(phi, name) for name in Activation.__dataclass_fields__}
    with pytest.raises(ConformanceError, match="envelope"):
        check_activation(kind(**{**values, "name": "own"}))


def test_a_value_at_zero_that_is_wrong_is_caught():
    kind = type("Zero", (Activation,), {"at_zero": 0.25})
    values = {name: getattr(TANH, name) for name in Activation.__dataclass_fields__}
    with pytest.raises(ConformanceError, match="at_zero"):
        check_activation(kind(**{**values, "name": "own"}))


def test_moments_that_do_not_see_a_narrow_bend_are_caught():
    """A bump of width 1/500 at a place that neither knots nor scale tell of: panels step over it."""
    width = 1 / 500
    phi = Activation(
        "own", lambda z: width * torch.tanh((z - 5.3) / width), lipschitz=1.0, curvature=0.77 / width, scale=1.0
    )
    with pytest.raises(ConformanceError, match=r"another quadrature|slope jumps"):
        check_activation(phi)

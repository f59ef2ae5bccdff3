"""What several tests share: the table of activations, small layers and networks, a brute-force maximum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from coreprune.maths.activation import Activation, activation
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.readers import errors, replace_for
from coreprune.maths.reading import Reading
from coreprune.maths.select import Path as Chosen

#: the methods this suite speaks about; new ones bring tests of their own
METHODS = ("sampling", "uniform", "magnitude", "sensitivity")


@dataclass(frozen=True)
class Case:
    """One activation of the shared table, and an independent implementation of it."""

    name: str
    reference: Callable[[Tensor], Tensor]
    parameters: dict[str, float] = field(default_factory=dict)

    @property
    def phi(self) -> Activation:
        return activation(self.name, **self.parameters)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.parameters.items())])


CASES = [
    Case("identity", lambda z: z),
    Case("relu", F.relu),
    Case("softplus", lambda z: F.softplus(z, threshold=40)),
    Case("softplus", lambda z: F.softplus(z, beta=3, threshold=40), {"beta": 3.0}),
    Case("sigmoid", torch.sigmoid),
    Case("binary_step", lambda z: torch.heaviside(z, torch.ones((), dtype=z.dtype))),
    Case("soft_clipping", lambda z: F.softplus(z, threshold=40) - F.softplus(z - 1, threshold=40)),
    Case("relu6", F.relu6),
    Case("gaussian", lambda z: torch.exp(-z * z)),
    Case("leaky_relu", F.leaky_relu),
    Case("leaky_relu", lambda z: F.leaky_relu(z, 0.2), {"slope": 0.2}),
    Case("leaky_relu", lambda z: F.leaky_relu(z, -0.1), {"slope": -0.1}),
    Case("leaky_relu", lambda z: F.leaky_relu(z, 2.0), {"slope": 2.0}),
    Case("elu", F.elu),
    Case("elu", lambda z: F.elu(z, 0.5), {"alpha": 0.5}),
    Case("elu", lambda z: F.elu(z, 2.0), {"alpha": 2.0}),
    Case("selu", F.selu),
    Case("tanh", torch.tanh),
    Case("hardtanh", F.hardtanh),
    Case("hardtanh", lambda z: F.hardtanh(z, -2.0, 3.0), {"low": -2.0, "high": 3.0}),
    Case("hardsigmoid", F.hardsigmoid),
    Case("hardswish", F.hardswish),
    Case("gelu", F.gelu),
    Case("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
    Case("silu", F.silu),
    Case("mish", F.mish),
]


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def random_layer(
    n: int = 12, d: int = 4, p: int = 3, phi: str = "relu", *, seed: int = 0, radius: float = 1.5, **parameters: float
) -> Layer:
    g = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return Layer(normal(n, d), normal(n), normal(p, n), activation(phi, **parameters), radius)


def in_ball(count: int, d: int, radius: float, seed: int = 0) -> Tensor:
    """Points of the ball ‖x‖ ≤ radius, a half of them on its edge, (count, d)."""
    g = seeded(seed)
    x = F.normalize(torch.randn(count, d, generator=g, dtype=torch.float64), dim=1)
    length = torch.rand(count, 1, generator=g, dtype=torch.float64)
    length[::2] = 1
    return radius * length * x


def brute_range(phi: Callable[[Tensor], Tensor], low: float, high: float) -> tuple[float, float]:
    """Minimum and maximum of φ over an interval by two nested grids, knowing nothing of φ."""
    found = []
    for sign in (1, -1):
        a, b = low, high
        for _ in range(2):
            grid = torch.linspace(a, b, 4001, dtype=torch.float64)
            values = sign * phi(grid)
            at, best = int(values.argmin()), float(values.min())
            step = (b - a) / 4000
            a, b = max(low, float(grid[at]) - step), min(high, float(grid[at]) + step)
        found.append(sign * best)
    return found[0], found[1]


def lenet_like(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A network with two hidden layers: sites "0" (16 units) and "2" (12 units)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).to(dtype)


def sizes(model: nn.Sequential) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every directory."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in sorted(folder.rglob("*"))}


def worst_error(layer: Layer, cut: Callable[[Tensor], Tensor], *, starts: int = 8, steps: int = 60) -> float:
    """The largest |y_i − ŷ_i| that gradient ascent finds over the ball, for each output and sign."""
    d, p = layer.incoming.shape[1], layer.outgoing.shape[0]
    x = in_ball(starts * p * 2, d, layer.radius, seed=7)
    rows = torch.arange(len(x))
    output, sign = rows % p, 1.0 - 2.0 * (rows // p % 2)
    best = 0.0
    for step in range(steps):
        x = x.detach().requires_grad_()
        gap = (layer(x) - cut(x))[rows, output]
        best = max(best, float(gap.detach().abs().max()))
        (slope,) = torch.autograd.grad((sign * gap).sum(), x)
        rate = 0.5 * layer.radius * math.cos(math.pi / 2 * step / steps)
        x = x.detach() + rate * F.normalize(slope, dim=1)
        x = x * (layer.radius / x.norm(dim=1, keepdim=True)).clamp(max=1)
    return best


# factories for the command line, as helpers:NAME


def two_sites() -> nn.Module:
    return lenet_like(3)


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 17), nn.ReLU(), nn.Linear(17, 12), nn.ReLU(), nn.Linear(12, 4))


def text() -> str:
    return "not a module"


def one_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.ReLU())


def no_linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.ReLU())


def unknown_activation() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.CELU(), nn.Linear(3, 2))


def with_nan() -> nn.Module:
    model = lenet_like(3)
    with torch.no_grad():
        model[2].bias[5] = math.nan
    return model


def with_infinity() -> nn.Module:
    model = lenet_like(3)
    with torch.no_grad():
        model[4].weight[0, 0] = -math.inf
    return model


def raises() -> nn.Module:
    raise ValueError("this factory cannot make its model")


a_number = 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def optimal(reading: Reading, kept: Tensor, path: Chosen | None = None) -> Coreset:
    """The replacement for one reader alone."""
    return replace_for([reading], kept, path)[0]


def error(reading: Reading, coreset: Coreset) -> float:
    return errors([reading], [coreset])[0]


def energy(reading: Reading) -> float:
    return reading.energy


class Branches(nn.Module):
    """Two hidden layers side by side whose readers' outputs add up, so that the loss is of second order."""

    def __init__(self, second: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(6, 24)
        self.c, self.d = nn.Linear(24, 5), nn.Linear(24, 5)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x))) + self.second * self.d(F.relu(self.b(x)))

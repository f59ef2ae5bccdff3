"""The data-dependent ancestor: a coreset of the edges into each neuron, drawn by their importance on data.

Baykal, Liebenwein, Gilitschenski, Feldman, Rus, "Data-Dependent Coresets for Compressing Neural Networks with
Applications to Generalization Bounds", arXiv:1804.05345 (ICLR 2019); own code from the formulas. For one neuron with
weights w over inputs a(x) ≥ 0, and each sign of weight on its own:

    s_j = max_{x ∈ S} w_j a_j(x) / Σ_k w_k a_k(x)        q_j = s_j / Σ s        m draws        ŵ_j = w_j n_j / (m q_j)

S is a small sample of pictures, n_j how often edge j was drawn. The theorem's m is in proportion to Σ s, so one constant
for the whole network, found for the size that is wanted, says how many draws each neuron gets: the same tolerance for
every layer, where the paper has one per layer. Biases stay. The result is a network of the same widths with sparse weights.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Generator, Tensor, nn

__all__ = ["Sparse", "drawn_edges", "edges", "importance", "sparse_bytes"]


def importance(weights: Tensor, inputs: Tensor) -> Tensor:
    """s_ij, (p, n): the largest share that an edge has in its neuron's sum of its sign, over the inputs.

    Args:
        weights: w, (p, n), of one sign: zeros elsewhere.
        inputs: a(x) ≥ 0, (|S|, n).

    Example:
        >>> importance(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])).tolist()
        [[1.0, 0.75, 0.0]]
    """
    result = torch.zeros_like(weights)
    for a in inputs:
        parts = weights.abs() * a
        result = torch.maximum(result, parts / parts.sum(1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny))
    return result


def drawn_edges(weights: Tensor, s: Tensor, draws: Tensor, generator: Generator) -> Tensor:
    """ŵ, (p, n), from as many draws with replacement for each row as `draws` says; E ŵ = w where s > 0.

    Args:
        weights: w, (p, n). s: importance, (p, n); a row of zeros draws nothing. draws: m, (p,).
    """
    result = torch.zeros_like(weights)
    for i in s.sum(1).nonzero()[:, 0].tolist():
        q = s[i] / s[i].sum()
        count = torch.bincount(
            torch.multinomial(q, int(draws[i]), replacement=True, generator=generator), minlength=len(q)
        )
        at = count > 0
        result[i, at] = weights[i, at] * count[at] / (draws[i] * q[at])
    return result


def edges(model: nn.Sequential, pictures: Tensor, size: int, generator: Generator) -> nn.Sequential:
    """The network with `size` edges, on average over draws.

    Args:
        model: Linear layers and ReLU in turn; not changed.
        pictures: S, (|S|, d), non-negative.
        size: edges to keep in all layers together.
        generator: of the draws.

    Raises:
        ValueError: fewer edges were asked for than one draw per neuron and sign gives, or more than matter.
    """
    result = copy.deepcopy(model)
    layers = [module for module in result if isinstance(module, nn.Linear)]
    signed = [
        (part, importance(part, a))
        for layer, a in zip(layers, _inputs(model, pictures.double()), strict=True)
        for part in (layer.weight.detach().double().clamp(min=0), layer.weight.detach().double().clamp(max=0))
    ]
    rate = _rate([s for _, s in signed], size)
    drawn = [drawn_edges(part, s, _draws(s, rate), generator) for part, s in signed]
    with torch.no_grad():
        for layer, positive, negative in zip(layers, drawn[::2], drawn[1::2], strict=True):
            layer.weight.copy_(positive + negative)
    return result


def _inputs(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each Linear layer gets, in float64."""
    result = []
    with torch.no_grad():
        for module in copy.deepcopy(model).double():
            if isinstance(module, nn.Linear):
                result.append(x)
            x = module(x)
    return result


def _draws(s: Tensor, rate: float) -> Tensor:
    return torch.ceil(rate * s.sum(1)).clamp(min=1).long()


def _expected(parts: list[Tensor], rate: float) -> float:
    """Edges that are drawn at least once, in expectation: Σ 1 − (1 − q_j)^m."""
    total = 0.0
    for s in parts:
        live = s.sum(1) > 0
        q = s[live] / s[live].sum(1, keepdim=True)
        total += float((1 - (1 - q) ** _draws(s[live], rate)[:, None]).sum())
    return total


def _rate(parts: list[Tensor], size: int) -> float:
    """Draws per unit of Σ s with which `size` edges are expected, by bisection."""
    low, high = 1e-6, 1e9
    if not _expected(parts, low) <= size <= _expected(parts, high):
        raise ValueError(f"{size} edges were asked: give {_expected(parts, low):.0f} to {_expected(parts, high):.0f}")
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _expected(parts, middle) < size else (low, middle)
    return high


class Sparse(nn.Module):
    """The same network with its Linear layers' weights as compressed sparse rows, to measure its time.

    Args:
        model: Linear layers and ReLU in turn.
    """

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        linear = [module for module in model if isinstance(module, nn.Linear)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            self.layers = [(one.weight.detach().to_sparse_csr(), one.bias.detach()) for one in linear]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C) of x (N, d)."""
        for i, (weight, bias) in enumerate(self.layers):
            x = torch.relu(x) if i else x
            x = (weight @ x.T).T + bias
        return x


def sparse_bytes(model: nn.Module) -> int:
    """Bytes as compressed sparse rows: 4 for a value, 2 for its column, 4 for each row's end; biases as they are."""
    total = 0
    for name, value in model.state_dict().items():
        if name.endswith("weight"):
            total += 6 * int((value != 0).sum()) + 4 * (len(value) + 1)
        else:
            total += 4 * value.numel()
    return total

"""The paper's synthetic experiment: worst error over the ball against coreset size, for one neuron and for a layer.

    python benchmarks/synthetic.py [--activations relu sigmoid …] [--draws 20] [--again]

1,000 points p_j feed one neuron, or a layer of OUTPUTS neurons that share a coreset. For each activation and size: the
largest |Σ_j (w_ij − u_ij) φ(p_j·(x, 1))| over ‖x‖ ≤ 1 and all outputs i found by gradient ascent (Adam) on |·| from several
starts, as a share of the total sensitivity T = Σ_j max_i |w_ij| φ̄(R‖p_j‖); mean and spread over independent draws, of
layers a quarter as many. Methods:

- coreset: the paper's draws by sensitivity, with the theorem's curve beside it;
- uniform: even draws;
- percentile: the largest |w| ‖p‖ as they are;
- kernel: units and weights in closed form under inputs N(0, 1/d), which knows nothing of the ball, and no theorem bounds.

The points are standard normal in 10 dimensions with log-normal lengths and weights, so that a few matter more than
most, as in trained layers; the paper does not say its own. A study that is in the record is not made again but with
--again. Writes synthetic.json, .svg and .png into benchmarks/results/.
Source: [M19] section "experiments", figure 1.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Generator, Tensor

from coreprune.maths.activation import Activation, activation
from coreprune.maths.bounds import error_of_draws, total_sensitivity
from coreprune.maths.kernel import kernel
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import coreset_of_layer, sensitivity
from coreprune.priors.gaussian import Gaussian, Propagation
from records import read_record, results, write_record

Study = dict[str, Any]

SIZES = (10, 20, 50, 100, 200, 400, 700)
POINTS, DIMENSION, RADIUS, DELTA, OUTPUTS = 1000, 10, 1.0, 0.05, 10
METHODS = {"coreset": "#0b6e99", "uniform": "#c77d0a", "percentile": "#8a8a8a", "kernel": "#0b6e4f"}
DRAWN = ("coreset", "uniform")


def made(phi: Activation, outputs: int, generator: Generator) -> Layer:
    """1,000 points with weights, both heavy-tailed, under the law of inputs N(0, 1/d)."""
    length = torch.exp(torch.randn(POINTS, 1, generator=generator, dtype=torch.float64))
    points = length * torch.randn(POINTS, DIMENSION, generator=generator, dtype=torch.float64) / DIMENSION**0.5
    bias = 0.3 * torch.randn(POINTS, generator=generator, dtype=torch.float64)
    weights = torch.exp(torch.randn(outputs, POINTS, generator=generator, dtype=torch.float64))
    layer = Layer(points, bias, weights, phi, RADIUS)
    law = Propagation(Gaussian(std=RADIUS / DIMENSION**0.5).inputs(DIMENSION, RADIUS)).law(layer, layer)
    return Layer(points, bias, weights, phi, RADIUS, law)


def replaced(method: str, layer: Layer, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Weights u of one coreset, (p, n), and the constant that goes with them, (p,)."""
    W, none = layer.outgoing, layer.outgoing.new_zeros(len(layer.outgoing))
    scale = W.new_zeros(POINTS)
    if method == "kernel":
        found = kernel(layer, size)
        u = torch.zeros_like(W).index_copy_(1, found.indices, found.outgoing(W))
        return u, none if found.offset is None else W @ found.offset
    if method == "coreset":
        found = coreset_of_layer(layer, draws=size, generator=generator)
        assert isinstance(found.mix, Tensor)
        scale[found.indices] = found.mix.double()
    elif method == "uniform":
        picked = torch.randint(POINTS, (size,), generator=generator)
        scale = torch.bincount(picked, minlength=POINTS) * POINTS / size
    else:
        scale[(layer.norms * W.abs().amax(0)).topk(size).indices] = 1
    return W * scale, none


def worst_errors(
    layer: Layer, differences: Tensor, constants: Tensor, generator: Generator, starts: int = 8, steps: int = 120
) -> Tensor:
    """Largest |Σ v_j φ(p_j·(x, 1)) − c| over the ball found for each row v of differences (rows, n) and its c, by Adam."""
    rows = len(differences)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(starts)[None, :]
    x = torch.randn(rows, 2 * starts, DIMENSION, generator=generator, dtype=torch.float64)
    x = (x / x.norm(dim=-1, keepdim=True)).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05)
    best = torch.zeros(rows, dtype=torch.float64)
    for _ in range(steps):
        value = signs * (layer.hidden(x).matmul(differences[:, :, None])[..., 0] - constants[:, None])
        best = torch.maximum(best, value.detach().amax(1))
        adam.zero_grad()
        (-value.sum()).backward()
        adam.step()
        with torch.no_grad():
            x /= x.norm(dim=-1, keepdim=True).clamp(min=RADIUS) / RADIUS
    return best


def study(name: str, outputs: int, draws: int, seed: int) -> Study:
    """All methods and sizes for one activation and number of outputs."""
    generator = torch.Generator().manual_seed(seed)
    layer = made(activation(name), outputs, generator)
    scale = float(sensitivity(layer).sum())
    curves: dict[str, list[dict[str, float]]] = {}
    for method in METHODS:
        curves[method] = []
        for size in SIZES:
            count = draws if method in DRAWN else 1
            made_of = [replaced(method, layer, size, generator) for _ in range(count)]
            off, constants = torch.cat([layer.outgoing - u for u, _ in made_of]), torch.cat([c for _, c in made_of])
            found = worst_errors(layer, off, constants, generator).view(count, outputs).amax(1) / scale
            spread = float(found.std()) if count > 1 else 0.0
            curves[method].append({"size": size, "mean": float(found.mean()), "std": spread, "max": float(found.max())})
    # weights are positive, so one sign
    total = total_sensitivity(layer, sensitivity(layer) / scale)
    bound = [error_of_draws(total, size, DELTA, outputs) / scale for size in SIZES]
    return {"activation": name, "outputs": outputs, "scale": scale, "draws": draws, "seed": seed, "delta": DELTA,
            "theorem": bound, "curves": curves}  # fmt: skip


def draw(studies: list[Study]) -> None:
    """One panel for each activation and number of outputs, all on the same axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    columns = (max(sum(one["outputs"] == p for one in studies) for p in (1, OUTPUTS)) + 1) // 2
    figure, axes = plt.subplots(4, columns, figsize=(11, 11.6), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for half, outputs in enumerate((1, OUTPUTS)):
        mine = [one for one in studies if one["outputs"] == outputs]
        for axis, one in zip(axes[2 * half : 2 * half + 2].flat, mine, strict=False):
            axis.set_visible(True)
            _panel(axis, one)
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("coreset size")
    figure.supylabel("worst error over the ball / total sensitivity")
    figure.tight_layout()
    figure.savefig(results() / "synthetic.svg", metadata={"Date": None})
    figure.savefig(results() / "synthetic.png", dpi=130)


def _panel(axis: Any, one: Study) -> None:
    for method, points in one["curves"].items():
        mean = torch.tensor([p["mean"] for p in points])
        std = torch.tensor([p["std"] for p in points])
        axis.loglog(SIZES, mean.clamp(min=1e-6), marker="o", markersize=3, color=METHODS[method], label=method)
        axis.fill_between(SIZES, (mean - std).clamp(min=1e-6), mean + std, color=METHODS[method], alpha=0.2, lw=0)
    axis.loglog(SIZES, one["theorem"], color="black", ls="--", lw=1, label="theorem, probability 95 %")
    axis.set_title(f"{one['activation']}, {'one neuron' if one['outputs'] == 1 else 'a layer'}", fontsize=9)
    axis.grid(alpha=0.3, which="both", lw=0.4)


def main() -> None:
    """Run what is missing, write after each, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--activations",
        nargs="+",
        default=["relu", "softplus", "sigmoid", "soft_clipping", "relu6", "gaussian", "tanh", "gelu"],
    )
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="make also what is in the record")
    args = parser.parse_args()
    wanted = [
        {"activation": name, "outputs": p, "draws": draws, "seed": args.seed}
        for p, draws in ((1, args.draws), (OUTPUTS, max(2, args.draws // 4)))
        for name in args.activations
    ]
    known = [] if args.again else read_record("synthetic").get("studies", [])
    for key in wanted:
        if any(key.items() <= one.items() for one in known):
            continue
        known.append(study(key["activation"], key["outputs"], key["draws"], key["seed"]))
        write_record("synthetic", {"studies": known})
        at = SIZES.index(100)
        print(
            f"{key['activation']:14s} {key['outputs']:2d} outputs, 100 draws:",
            ", ".join(f"{method} {points[at]['mean']:.4f}" for method, points in known[-1]["curves"].items()),
            f"theorem {known[-1]['theorem'][at]:.3f}",
            flush=True,
        )
    draw([one for key in wanted for one in known if key.items() <= one.items()])


if __name__ == "__main__":
    main()

"""The paper's synthetic experiment: one neuron over 1,000 weighted points, worst error over the ball.

    python benchmarks/synthetic.py [--activations relu sigmoid …] [--draws 20]

For each activation and coreset size: the largest |Σ (w_j − u_j) φ(p_j·(x, 1))| over ‖x‖ ≤ 1 found
by gradient ascent (Adam) on |·| from several starts, as a share of Σ w_j φ̄(R‖p_j‖); mean and spread over
independent draws, for the sampled coreset, uniform sampling and the largest norms, beside the
theorem's curve. Writes synthetic.json, .svg and .png into benchmarks/results/.

The points are standard normal in 10 dimensions with log-normal lengths and weights, so that a few
matter more than most, as in trained layers; the paper does not say its own.
Source: [M19] section "experiments", figure 1.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from coreprune.maths.activation import Activation, activation
from coreprune.maths.bounds import error_of_draws, total_sensitivity
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import coreset_of_neuron, sensitivity
from records import results, write_record

SIZES = (10, 20, 50, 100, 200, 400, 700)
POINTS, DIMENSION, RADIUS, DELTA = 1000, 10, 1.0, 0.05


def neuron(phi: Activation, generator: torch.Generator) -> Layer:
    """1,000 points with weights, both heavy-tailed."""
    length = torch.exp(torch.randn(POINTS, 1, generator=generator, dtype=torch.float64))
    points = length * torch.randn(POINTS, DIMENSION, generator=generator, dtype=torch.float64) / DIMENSION**0.5
    bias = 0.3 * torch.randn(POINTS, generator=generator, dtype=torch.float64)
    weights = torch.exp(torch.randn(1, POINTS, generator=generator, dtype=torch.float64))
    return Layer(points, bias, weights, phi, RADIUS)


def coreset(method: str, layer: Layer, size: int, generator: torch.Generator) -> Tensor:
    """Weights u of one coreset."""
    weights = layer.outgoing[0]
    if method == "coreset":
        points = torch.cat([layer.incoming, layer.bias[:, None]], 1)
        return coreset_of_neuron(points, weights, layer.activation, RADIUS, draws=size, generator=generator)
    if method == "uniform":
        picked = torch.randint(POINTS, (size,), generator=generator)
        return weights * torch.bincount(picked, minlength=POINTS) * POINTS / size
    kept = torch.zeros(POINTS, dtype=torch.float64)
    kept[layer.norms.topk(size).indices] = 1
    return weights * kept


def worst_errors(
    layer: Layer, differences: Tensor, generator: torch.Generator, starts: int = 8, steps: int = 120
) -> Tensor:
    """Largest |Σ v_j φ(p_j·(x, 1))| over the ball found for each row v of differences (rows, n), by Adam."""
    rows = len(differences)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(starts)[None, :, None]
    x = torch.randn(rows, 2 * starts, DIMENSION, generator=generator, dtype=torch.float64)
    x = (x / x.norm(dim=-1, keepdim=True)).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05)
    best = torch.zeros(rows, dtype=torch.float64)
    for _ in range(steps):
        value = (signs * layer.hidden(x)).matmul(differences[:, :, None])[..., 0]
        best = torch.maximum(best, value.detach().amax(1))
        adam.zero_grad()
        (-value.sum()).backward()
        adam.step()
        with torch.no_grad():
            x /= x.norm(dim=-1, keepdim=True).clamp(min=RADIUS) / RADIUS
    return best


def study(name: str, draws: int, seed: int) -> dict[str, object]:
    """All methods and sizes for one activation."""
    generator = torch.Generator().manual_seed(seed)
    layer = neuron(activation(name), generator)
    scale = float(sensitivity(layer).sum())
    curves: dict[str, list[dict[str, float]]] = {}
    for method in ("coreset", "uniform", "largest norm"):
        curves[method] = []
        for size in SIZES:
            count = 1 if method == "largest norm" else draws
            drawn = torch.stack([coreset(method, layer, size, generator) for _ in range(count)])
            found = worst_errors(layer, layer.outgoing - drawn, generator) / scale
            spread = float(found.std()) if count > 1 else 0.0
            curves[method].append({"size": size, "mean": float(found.mean()), "std": spread, "max": float(found.max())})
    # weights are positive, so one sign; one output
    total = total_sensitivity(layer, sensitivity(layer) / scale)
    bound = [error_of_draws(total, size, DELTA) / scale for size in SIZES]
    return {"activation": name, "scale": scale, "draws": draws, "delta": DELTA, "theorem": bound, "curves": curves}


def draw(studies: list[dict[str, object]]) -> None:
    """One panel per activation, all on the same axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "coreprune"
    figure, axes = plt.subplots(2, (len(studies) + 1) // 2, figsize=(11, 6.2), sharex=True, sharey=True, squeeze=False)
    colours = {"coreset": "#0b6e99", "uniform": "#c77d0a", "largest norm": "#8a8a8a"}
    for axis, one in zip(axes.flat, studies, strict=False):
        for method, points in one["curves"].items():  # type: ignore[attr-defined]
            mean = torch.tensor([p["mean"] for p in points])
            std = torch.tensor([p["std"] for p in points])
            axis.loglog(SIZES, mean, marker="o", markersize=3, color=colours[method], label=method)
            axis.fill_between(SIZES, (mean - std).clamp(min=1e-6), mean + std, color=colours[method], alpha=0.2, lw=0)
        axis.loglog(SIZES, one["theorem"], color="black", ls="--", lw=1, label="theorem, probability 95 %")
        axis.set_title(one["activation"], fontsize=10)
        axis.grid(alpha=0.3, which="both", lw=0.4)
    for axis in axes.flat[len(studies) :]:
        axis.set_visible(False)
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel("coreset size (draws)")
    figure.supylabel("worst error over the ball / total sensitivity")
    figure.tight_layout()
    figure.savefig(results() / "synthetic.svg", metadata={"Date": None})
    figure.savefig(results() / "synthetic.png", dpi=130)


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--activations",
        nargs="+",
        default=["relu", "softplus", "sigmoid", "soft_clipping", "relu6", "gaussian", "tanh", "gelu"],
    )
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    studies = []
    for name in args.activations:
        studies.append(study(name, args.draws, args.seed))
        curve = studies[-1]["curves"]
        at = SIZES.index(100)
        print(
            f"{name:14s} 100 draws:",
            ", ".join(f"{method} {points[at]['mean']:.4f}" for method, points in curve.items()),  # type: ignore[attr-defined]
            f"theorem {studies[-1]['theorem'][at]:.3f}",  # type: ignore[index]
            flush=True,
        )
    write_record("synthetic", {"studies": studies, "seed": args.seed})
    draw(studies)


if __name__ == "__main__":
    main()

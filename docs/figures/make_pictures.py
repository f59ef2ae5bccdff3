"""Draw the pictures of "how it works" from what the package computes: ``python docs/figures/make_pictures.py``.

kernel.svg: the correlation of two units against that of their pre-activations, in closed form and sampled.
gram.svg: the correlations of 32 units of the shipped LeNet-300-100, and what the kept ones leave of them.
cut.svg: a small layer before and after a cut, with its weights. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import coreprune as cp
from coreprune.demo import lenet
from coreprune.maths.activation import activation
from coreprune.maths.gram import gaussian_moments
from coreprune.maths.reweight import solve

HERE = Path(__file__).parent
STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#1f2328}.small{font-size:11px}.muted{fill:#59636e}
.axis{stroke:#59636e;fill:none}.grid{stroke:#d1d9e0;fill:none}.unit{fill:#ffffff;stroke:#1f2328}.gone{fill:none;stroke:#8c959f}
.a{stroke:#0b5cad;fill:#0b5cad}.b{stroke:#b54708;fill:#b54708}.c{stroke:#1a7f37;fill:#1a7f37}.line{fill:none;stroke-width:2}
.zero{fill:#ffffff}.plus{fill:#0b5cad}.minus{fill:#b54708}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.muted{fill:#9198a1}.axis{stroke:#9198a1}.grid{stroke:#3d444d}
.unit{fill:#21262d;stroke:#e6edf3}.gone{stroke:#6e7681}.a{stroke:#6cb6ff;fill:#6cb6ff}.b{stroke:#f0883e;fill:#f0883e}
.c{stroke:#56d364;fill:#56d364}.line{fill:none}.zero{fill:#161b22}.plus{fill:#6cb6ff}.minus{fill:#f0883e}}
</style>"""


def page(name: str, size: tuple[int, int], title: str, parts: Iterable[str]) -> None:
    """Write an SVG with a title that a screen reader speaks."""
    width, height = size
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    body = "\n".join(parts)
    (HERE / name).write_text(f"{head}\n<title>{title}</title>\n{STYLE}\n{body}\n</svg>\n", encoding="utf-8")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{words}</text>'


def kernel() -> None:
    """Correlation of units against correlation of pre-activations, at unit variance; points: 20,000 samples each."""
    left, top, wide, high = 60, 20, 460, 300

    def at(rho: float, value: float) -> str:
        return f"{left + wide * (rho + 1) / 2:.1f},{top + high * (1 - value) / 2:.1f}"

    parts = [
        f'<path class="grid" d="M{at(-1, v)} L{at(1, v)} M{at(v, -1)} L{at(v, 1)}"/>' for v in (-1, -0.5, 0, 0.5, 1)
    ]
    for v in (-1, 0, 1):
        parts += [text(left + wide * (v + 1) / 2, top + high + 18, f"{v}", "small muted")]
        parts += [text(left - 8, top + high * (1 - v) / 2 + 4, f"{v}", "small muted", "end")]
    parts += [text(left + wide / 2, top + high + 38, "correlation ρ of the pre-activations")]
    parts += [
        f'<g transform="rotate(-90 16 {top + high / 2})">{text(16, top + high / 2, "correlation of the units")}</g>'
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    cases = (("relu", 0.0, "a", "relu"), ("relu", -1.0, "b", "relu, mean −1"), ("tanh", 0.0, "c", "tanh"))
    for i, (name, mean, kind, label) in enumerate(cases):
        phi, means = activation(name), torch.full((2,), mean, dtype=torch.float64)

        def correlation(rho: float, phi: object = phi, means: Tensor = means) -> float:
            C = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
            G = gaussian_moments(phi, means, C).covariance
            return float(G[0, 1] / G[0, 0])

        grid = torch.linspace(-1, 1, 81).tolist()
        parts.append(f'<path class="line {kind}" d="M{" L".join(at(rho, correlation(rho)) for rho in grid)}"/>')
        for rho in (-0.8, -0.4, 0.0, 0.4, 0.8):
            z = torch.stack([noise[:, 0], rho * noise[:, 0] + (1 - rho**2) ** 0.5 * noise[:, 1]])
            sampled = float(torch.corrcoef(phi(z + mean))[0, 1])
            x, y = at(rho, sampled).split(",")
            parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>')
        parts.append(f'<path class="line {kind}" d="M{left + 14},{top + 18 + 20 * i} h24"/>')
        parts.append(text(left + 44, top + 22 + 20 * i, label, "", "start"))
    page(
        "kernel.svg", (540, 370), "The correlation of two units as a function of the correlation of what goes in", parts
    )


def squares(R: Tensor, x: float, y: float, side: float) -> list[str]:
    """A matrix of values in [-1, 1] as squares."""
    n = len(R)
    parts = [f'<rect class="zero axis" x="{x}" y="{y}" width="{n * side:g}" height="{n * side:g}"/>']
    for i, row in enumerate(R.tolist()):
        for j, value in enumerate(row):
            if abs(value) >= 0.02:
                kind, place = "plus" if value > 0 else "minus", f'x="{x + j * side:g}" y="{y + i * side:g}"'
                parts.append(
                    f'<rect class="{kind}" {place} width="{side}" height="{side}" opacity="{abs(value):.2f}"/>'
                )
    return parts


def gram() -> None:
    """Correlations of 32 units, and what is left of them once 12 units stand for all."""
    dense = lenet()
    net = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 100))
    with torch.no_grad():
        net[0].weight.copy_(dense[0].weight[:32])
        net[0].bias.copy_(dense[0].bias[:32])
        net[2].weight.copy_(dense[2].weight[:, :32])
    small = cp.prune(net, units={"0": 12}, prior=cp.Gaussian(std=0.5))
    kept = small.plan.cuts[0].kept
    P, b = net[0].weight.detach().double(), net[0].bias.detach().double()
    G = gaussian_moments(activation("relu"), b, 0.25 * P @ P.T).covariance
    left = G - solve(G[kept][:, kept], G[:, kept]) @ G[kept]
    scale = G.diagonal().rsqrt()
    rest = torch.tensor([j for j in range(32) if j not in kept.tolist()])
    order = torch.cat([kept, rest])
    before, after = ((M * scale[:, None] * scale)[order][:, order] for M in (G, left))
    side, y = 8, 46
    parts = [text(158, 20, "G: correlations of 32 units"), text(458, 20, "what 12 kept units leave of it")]
    for x, R in ((30, before), (330, after)):
        parts += squares(R.clamp(-1, 1), x, y, side)
        parts.append(
            f'<path class="axis" d="M{x},{y - 6} h{12 * side} M{x + 12 * side + 3},{y - 6} h{20 * side - 3}"/>'
        )
        parts.append(text(x + 6 * side, y - 10, "kept", "small muted"))
        parts.append(text(x + 22 * side, y - 10, "replaced", "small muted"))
    share = float(left.diagonal().sum() / G.diagonal().sum())
    relative = small.plan.cuts[0].evidence["relative_error"]
    said = f"{share:.0%} of the units' variance is left; of what the next layer reads, {relative**2:.1%}"
    parts.append(text(308, y + 32 * side + 22, said, "muted"))
    page("gram.svg", (616, 330), "The matrix of correlations before, and what the kept units do not explain", parts)


def network(net: nn.Sequential, names: list[int], gone: set[int], x: float) -> list[str]:
    """Nodes and edges of a layer with 6 places; widths are sizes of weights."""

    def place(layer: int, unit: int) -> tuple[float, float]:
        many = (3, 6, 2)[layer]
        return x + 115 * layer, 190 + 52 * (unit - (many - 1) / 2)

    edges, nodes = [], []
    for layer, W in ((0, net[0].weight), (1, net[2].weight)):
        for i, row in enumerate(W.tolist()):
            for j, weight in enumerate(row):
                start, end = (j, names[i]) if layer == 0 else (names[j], i)
                (x1, y1), (x2, y2) = place(layer, start), place(layer + 1, end)
                unit, kind = names[i] if layer == 0 else names[j], "a" if weight > 0 else "b"
                dash = ' stroke-dasharray="3 4" opacity="0.35"' if unit in gone else ""
                edges.append(
                    f'<path class="{kind}" stroke-width="{3.5 * abs(weight) ** 0.7:.2f}"'
                    f' d="M{x1:g},{y1:g} L{x2:g},{y2:g}"{dash}/>'
                )
    for layer, units in ((0, range(3)), (1, sorted(set(names) | gone)), (2, range(2))):
        for unit in units:
            cx, cy = place(layer, unit)
            kind = "gone" if layer == 1 and unit in gone else "unit"
            nodes.append(f'<circle class="{kind}" cx="{cx:g}" cy="{cy:g}" r="13"/>')
            if layer == 1:
                nodes.append(text(cx, cy + 4, f"h{unit + 1}", "small muted" if kind == "gone" else "small"))
    return edges + nodes


def cut() -> None:
    """A layer of six units before, and after three of them went and the next layer got the best weights."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        net[0].weight[4] = 1.5 * net[0].weight[1]  # a unit that is another one's multiple
        net[0].bias[4] = 1.5 * net[0].bias[1]
    small = cp.prune(net, units={"0": 3}, prior=cp.Gaussian())
    kept = small.plan.cuts[0].kept.tolist()
    gone = set(range(6)) - set(kept)
    parts = network(net, list(range(6)), gone, 60) + network(small.model, kept, set(), 410)
    for x, first in ((60, "inputs"), (410, "inputs")):
        for i, words in enumerate((first, "units", "outputs")):
            parts.append(text(x + 115 * i, 365, words, "small muted"))
    error = small.plan.cuts[0].evidence["relative_error"]
    parts += [
        text(175, 24, "before: 6 units, 3 to go"),
        text(525, 24, "after: the same inputs, W′ = W T, c′ = c + W t"),
    ]
    parts += [
        text(350, 395, f"what is read is off by {error:.1%} of its spread; blue: positive, orange: negative", "muted")
    ]
    parts.append('<path class="axis" d="M318,190 h44 m-8,-6 l8,6 l-8,6"/>')
    page("cut.svg", (700, 410), "A layer of six units before and after three of them are cut", parts)


if __name__ == "__main__":
    kernel()
    gram()
    cut()

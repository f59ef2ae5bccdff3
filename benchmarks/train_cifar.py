"""Train the convolutional networks of the benchmarks on CIFAR-10, into `benchmarks/networks/`.

    python benchmarks/train_cifar.py resnet20 --epochs 28
    python benchmarks/train_cifar.py resnet56 --epochs 26 --half
    python benchmarks/train_cifar.py vgg16-half --epochs 18 --half
    python benchmarks/train_cifar.py resnet20 --epochs 1 --limit 1000 --output FOLDER   # try it

The recipe is plain on purpose and was fixed before anything was pruned: random flips and crops out of 4 pixels of
padding, SGD with Nesterov momentum 0.9, batches of 128, weight decay 5e-4 on matrices and kernels, label smoothing
0.1, and a learning rate that rises to 0.1 over the first fifth and falls to 0 by a cosine. The last epoch's
network is the one kept; the test pictures are looked at once, after it.

The forward pass runs under bfloat16 autocast with channels last, two to three times as fast as float32 where the
processor has bfloat16 matrix instructions, and slower elsewhere: --float32 turns it off. One thread; --threads sets
another number. A run that was stopped goes on from its last epoch with --resume, also towards another number of --epochs, as
when a machine turns out slower than expected; the record beside the network lists such plans under "plans", as
[epochs done, epochs planned from there on].
The networks in `benchmarks/networks/` come out of such runs, of fewer epochs than in the commands above.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cifar import NETWORKS, load, pictures, standardised
from datasets import add_data_option

BATCH, PEAK, RISE, MOMENTUM, DECAY, SMOOTHING, PADDING = 128, 0.1, 0.2, 0.9, 5e-4, 0.1, 4
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """What one run is told."""

    network: str
    seed: int
    bfloat16: bool


@dataclass(frozen=True)
class Past:
    """What became of it: epochs done, seconds they took, and every number of epochs planned, with the epoch it held from."""

    epochs: int = 0
    seconds: float = 0.0
    plans: tuple[tuple[int, int], ...] = ()


def rate(progress: float) -> float:
    """The learning rate when this share of all steps is done: a straight rise to PEAK, then a cosine to 0."""
    if progress < RISE:
        return PEAK * (0.01 + 0.99 * progress / RISE)
    return PEAK * (1 + math.cos(math.pi * (progress - RISE) / (1 - RISE))) / 2


def batches(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: random order, crops out of the padded pictures, and flips, standardised; a last part batch is left out."""
    size = x.shape[-1] - 2 * PADDING
    crops = x.unfold(2, size, 1).unfold(3, size, 1)  # a view: (N, 3, 2 PADDING + 1, 2 PADDING + 1, size, size)
    for batch in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
        down, right = torch.randint(2 * PADDING + 1, (2, len(batch)), generator=generator)
        flip = torch.rand(len(batch), generator=generator) < 0.5
        part = crops[batch, :, down, right]
        yield standardised(torch.where(flip.view(-1, 1, 1, 1), part.flip(3), part)), y[batch]


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD whose weight decay leaves biases and BatchNorm alone."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=PEAK, momentum=MOMENTUM, nesterov=True)


def resumed(recipe: Recipe, stop: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> Past:
    """Put model and optimiser where a stopped run left them."""
    state = torch.load(stop, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise SystemExit(f"{stop} is of another run, {state['recipe']}: give its options, or leave --resume out")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Past(**state["past"])


def train(recipe: Recipe, epochs: int, x: Tensor, y: Tensor, stop: Path, resume: bool) -> tuple[nn.Module, Past]:
    """A trained network; after each epoch its state goes to the file `stop`.

    The seed decides initialisation, and with the number of an epoch its order and augmentation, so that a resumed run
    sees what it would have seen.
    """
    torch.manual_seed(recipe.seed)
    model = NETWORKS[recipe.network]().to(memory_format=torch.channels_last)
    optimiser = optimiser_of(model)
    padded, steps = F.pad(x, (PADDING,) * 4), len(x) // BATCH
    past = resumed(recipe, stop, model, optimiser) if resume else Past()
    if not past.plans or past.plans[-1][1] != epochs:
        past = replace(past, plans=(*past.plans, (past.epochs, epochs)))
    for epoch in range(past.epochs, epochs):
        began, losses, right = time.perf_counter(), 0.0, 0
        generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
        for step, (inputs, labels) in enumerate(batches(padded, y, generator)):
            for group in optimiser.param_groups:
                group["lr"] = rate((epoch * steps + step) / (epochs * steps))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
                scores = model(inputs.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses += loss.item() / steps
            right += int((scores.argmax(1) == labels).sum())
        took = time.perf_counter() - began
        past = replace(past, epochs=epoch + 1, seconds=past.seconds + took)
        share = 100 * right / (steps * BATCH)
        print(f"epoch {epoch + 1}/{epochs}: loss {losses:.3f}, right {share:.2f} %, {took:.0f} s", flush=True)
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({"recipe": asdict(recipe), "past": asdict(past), **state}, stop)
    return model.to(memory_format=torch.contiguous_format).eval(), past


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers in percent, computed in float32."""
    with torch.no_grad():
        right = sum(
            int((model(standardised(p)).argmax(1) == q).sum()) for p, q in zip(x.split(500), y.split(500), strict=True)
        )
    return 100 * right / len(x)


def stored(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """The tensors to write: float32, or with `half` float16 for matrices and kernels; BatchNorm is never rounded."""
    return {
        k: t.half() if half and t.ndim > 1 else t
        for k, t in ((k, t.contiguous()) for k, t in model.state_dict().items())
    }


def main() -> None:
    """Train, write and measure one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    add_data_option(parser)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="train and test on this many pictures only")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in training")
    parser.add_argument("--half", action="store_true", help="store matrices and kernels in float16")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch of a run that was stopped")
    parser.add_argument("--output", type=Path, default=_HERE / "networks", help="folder (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    recipe = Recipe(args.network, args.seed, not args.float32)
    parts = {part: pictures(part, args.data) for part in ("train", "test")}
    if args.limit:
        for part, (x, y) in parts.items():
            some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: args.limit]
            parts[part] = x[some], y[some]
    args.output.mkdir(parents=True, exist_ok=True)
    stop = _HERE / "cache" / f"training-{args.network}{'-limited' if args.limit else ''}.pt"
    model, past = train(recipe, args.epochs, *parts["train"], stop=stop, resume=args.resume)
    torch.set_flush_denormal(False)
    target = args.output / f"{args.network}.safetensors"
    save_file(
        stored(model, args.half), target, metadata={"network": args.network, "set": "cifar10", "seed": str(args.seed)}
    )
    record = {
        **asdict(recipe),
        **asdict(past),
        "seconds": round(past.seconds),
        "threads": args.threads,
        "torch": torch.__version__,
        "train_pictures": len(parts["train"][0]),
        "test_pictures": len(parts["test"][0]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "stored_as": "float16, BatchNorm float32" if args.half else "float32",
        "test_accuracy_trained": accuracy(model, *parts["test"]),
        "test_accuracy": accuracy(load(args.network, args.output), *parts["test"]),
    }
    target.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{args.network}: test accuracy {record['test_accuracy']:.2f} %, written to {target}")


if __name__ == "__main__":
    main()

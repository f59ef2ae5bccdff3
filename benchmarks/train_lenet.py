"""Train the LeNet-300-100 that the package ships, or its siblings for the benchmarks.

    python benchmarks/train_lenet.py                        # the shipped network, into src/coreprune/demo/data
    python benchmarks/train_lenet.py --set fashion-mnist --seed 3 --output FILE.safetensors

The recipe is plain on purpose and was fixed before anything was pruned: pixels / 255, Adam 1e-3
decayed to 0 by a cosine, batches of 128, 20 epochs, no weight decay, no augmentation, one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from coreprune.demo import architecture
from datasets import add_data_option, images

EPOCHS, BATCH, RATE = 20, 128, 1e-3


def train(x: Tensor, y: Tensor, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """A trained network; `seed` decides initialisation and order."""
    torch.manual_seed(seed)
    model = architecture()
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * (len(x) // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(BATCH)[: len(x) // BATCH]:
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
            schedule.step()
    return model


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of wrong answers in percent."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) != y).double().mean())


def main() -> None:
    """Train and write one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--set", default="mnist", choices=["mnist", "fashion-mnist"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("src/coreprune/demo/data/lenet-300-100.safetensors"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = train(*images(args.set, "train", args.data), seed=args.seed)
    wrong = error(model, *images(args.set, "t10k", args.data))
    save_file(model.state_dict(), args.output, metadata={"set": args.set, "seed": str(args.seed)})
    print(f"{args.set} seed {args.seed}: test error {wrong:.2f} %, written to {args.output}")


if __name__ == "__main__":
    main()

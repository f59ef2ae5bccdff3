"""Torch-Pruning on torchvision's classification networks: half of the channels, by magnitude, in one step.

    python benchmarks/zoo/rival.py [MODEL …] [--limit 120]

The settings are those of its README and of its own script for torchvision: the group's L2 norm as importance,
the final classifier left alone, channels of a vision transformer a multiple of its heads, and the width that
torchvision's vision transformer keeps as an attribute set to the new one. Writes zoo-torch-pruning.json.
"""

from __future__ import annotations

import measure
import torch_pruning as tp
from torch import Tensor, nn

RATIO = 0.5


def classifier(model: nn.Module) -> nn.Module:
    """The layer that makes the classes: the last one with as many outputs."""
    found = [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == measure.CLASSES
    ]
    return found[-1]


def cut(model: nn.Module, x: Tensor) -> nn.Module:
    """Prune in place."""
    transformer = type(model).__name__ == "VisionTransformer" and hasattr(model, "hidden_dim")
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[classifier(model)],
        round_to=model.encoder.layers[0].num_heads if transformer else None,
    )
    pruner.step()
    if transformer:
        model.hidden_dim = model.conv_proj.out_channels
    return model


if __name__ == "__main__":
    measure.main("torch-pruning", "torch-pruning", __file__, cut)

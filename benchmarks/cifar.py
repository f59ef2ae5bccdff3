"""CIFAR-10 for the benchmarks: the networks, the pictures, and the trained networks of `benchmarks/networks/`.

    from cifar import load, pictures, standardised

    model = load("resnet20")                    # trained, float32, in evaluation mode
    x, y = pictures("test", data)               # (10000, 3, 32, 32) bytes, (10000,) labels
    answers = model(standardised(x)).argmax(1)

The pictures are JPEG files, `cifar10/cifar10-jpeg.tar.gz` with `train/CLASS/NNNN.jpg` and `test/CLASS/NNNN.jpg`.
JPEG loses a little, so accuracies here are not those of the original bytes.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["CLASSES", "NETWORKS", "load", "pictures", "resnet20", "resnet56", "standardised", "vgg16"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: mean and standard deviation of the training pixels, per colour, of bytes / 255
MEAN, DEVIATION = (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606)

_ARCHIVE = "cifar10/cifar10-jpeg.tar.gz"
_DIGEST = "8d8437376819a5c304d3ecf515adfc156354815e7f0e7ff4df922fd55cf502ce"
_HERE = Path(__file__).parent
_COUNTS = {"train": 50_000, "test": 10_000}


# ---------------------------------------------------------------------------------------------- networks


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut around them: relu(f(x) + s(x))."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the block's width."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016, section 4.2), 6n + 2 layers, with option B shortcuts."""

    def __init__(self, n: int = 3, widths: tuple[int, int, int] = (16, 32, 64), classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        before, stages = widths[0], []
        for stage, width in enumerate(widths):
            blocks = []
            for i in range(n):
                blocks.append(Block(before, width, 2 if stage and not i else 1))
                before = width
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes, (N, classes), of pictures (N, 3, 32, 32)."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(self.flatten(self.pool(x)))


class VGG(nn.Module):
    """VGG-16 with BatchNorm as is usual for CIFAR: 13 convolutions, 5 poolings, and one linear layer."""

    LAYOUT = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = 3
        for i, group in enumerate(self.LAYOUT, 1):
            for j, full in enumerate(group, 1):
                after = round(full * width)
                layers[f"conv{i}_{j}"] = nn.Conv2d(before, after, 3, 1, 1, bias=False)
                layers[f"bn{i}_{j}"] = nn.BatchNorm2d(after)
                layers[f"relu{i}_{j}"] = nn.ReLU()
                before = after
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes, (N, classes), of pictures (N, 3, 32, 32)."""
        return self.classifier(self.flatten(self.features(x)))


def _initialised(model: nn.Module) -> nn.Module:
    """Convolutions after He et al. (2015); what else there is keeps PyTorch's start."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet20() -> nn.Module:
    """ResNet-20, 0.27 million parameters, untrained."""
    return _initialised(ResNet())


def resnet56() -> nn.Module:
    """ResNet-56, 0.86 million parameters, untrained."""
    return _initialised(ResNet(9))


def vgg16(width: float = 1.0) -> nn.Module:
    """VGG-16 with BatchNorm, 14.7 million parameters at width 1, untrained; `width` scales every layer."""
    return _initialised(VGG(width))


def vgg16_half() -> nn.Module:
    """VGG-16 with every layer half as wide, 3.7 million parameters, untrained."""
    return vgg16(0.5)


#: name of a network → what makes it, untrained
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg16": vgg16,
    "vgg16-half": vgg16_half,
}


def load(name: str, folder: Path = _HERE / "networks") -> nn.Module:
    """A trained network of NETWORKS in evaluation mode, in float32 whatever the file is in."""
    model = NETWORKS[name]()
    tensors = load_file(folder / f"{name}.safetensors")
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
    return model.eval()


# ---------------------------------------------------------------------------------------------- pictures


def standardised(x: Tensor) -> Tensor:
    """Bytes (N, 3, 32, 32) as what the networks take: per colour, mean 0 and deviation 1 over the training pictures."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (x.float() / 255 - mean) / deviation


def pictures(part: str, data: Path) -> tuple[Tensor, Tensor]:
    """Pictures as bytes (N, 3, 32, 32) and labels (N,), of part "train" or "test", in the order of classes and files.

    They are decoded once, and then read from `benchmarks/cache/`.
    """
    cache = _HERE / "cache" / f"cifar10-{part}-{_DIGEST[:8]}.safetensors"
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        archive = data / _ARCHIVE
        if not archive.exists():
            raise SystemExit(f"{archive} is not there: name the folder of data sets with --data or COREPRUNE_DATA")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != _DIGEST:
            raise SystemExit(f"{archive} is not the file that the benchmarks were made with: its SHA-256 differs")
        x, y = _decoded(archive, part)
        save_file({"x": x, "y": y}, cache)
    found = load_file(cache)
    return found["x"], found["y"].long()


def _decoded(archive: Path, part: str) -> tuple[Tensor, Tensor]:
    """The pictures and labels of one part of the archive."""
    from PIL import Image

    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(f"{part}/") and member.name.endswith(".jpg"):
                stream = tar.extractfile(member)
                assert stream is not None
                files[member.name] = stream.read()
    if len(files) != _COUNTS[part]:
        raise SystemExit(f"{archive}: {len(files)} pictures in {part}/ where there should be {_COUNTS[part]}")
    names = sorted(files)
    x = np.stack([np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in names])
    y = torch.tensor([CLASSES.index(name.split("/")[1]) for name in names], dtype=torch.uint8)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), y

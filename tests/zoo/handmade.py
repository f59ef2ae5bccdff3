"""Small networks, one for each wiring that a discovery of coupled units must get right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.families import lively
from zoo.wirings import (
    Answer,
    Apply,
    Autoencoder,
    CalledTwice,
    ChannelsLast,
    Dense,
    EinsumAttention,
    Functional,
    FusedAttention,
    Halves,
    HiddenOutput,
    Inception,
    OptionA,
    Parts,
    Recurrent,
    Residual,
    ResidualMlp,
    Scaled,
    SelfAttention,
    SharedWeight,
    Shuffle,
    SpatialGate,
    SqueezeExcite,
    SwiGlu,
    TwoByTwo,
    UNet,
    Unused,
    Vgg,
    conv_bn,
    halves,
)


@dataclass(frozen=True)
class Net:
    """One network, its inputs (positional or keyword), and what a reader of its code expects of it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...] | dict[str, Any]]
    note: str

    def __str__(self) -> str:
        return self.name


def constant_channel() -> nn.Module:
    """Channel 2 is constant, and the padding of the next layer cuts it off at the edge."""
    net = lively(
        nn.Sequential(*(m for i in (3, 8, 8) for m in (nn.Conv2d(i, 8, 3, padding=1), nn.ReLU())), nn.Conv2d(8, 2, 3))
    )
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0.7
    return net


def weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 12))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(12, 4))


def chain(*layers: Any) -> Callable[[], nn.Module]:
    """A factory of a Sequential; every entry is a class with its arguments."""
    return lambda: nn.Sequential(*(kind(*given) for kind, *given in layers))


def model_output() -> nn.Module:
    from transformers.modeling_outputs import BaseModelOutputWithPooling  # registers itself with pytree

    return TwoByTwo(lambda a, b: BaseModelOutputWithPooling(last_hidden_state=a, pooler_output=b))


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _images(side: int = 16, channels: int = 3) -> Callable[[], tuple[Tensor]]:
    return lambda: (_normal(2, channels, side, side),)


def _rows(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (_normal(2, *shape),)


def _tokens() -> tuple[Tensor]:
    return (torch.randint(17, (2, 7), generator=torch.Generator().manual_seed(1)),)


def _both() -> dict[str, Tensor]:
    return {"x": _normal(2, 6), "y": _normal(2, 3)}


def _net(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Any], note: str) -> Net:
    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return lively(make())

    return Net(name, seeded, inputs, note)


PERMUTATION = [3, 0, 7, 11, 5, 1, 9, 2, 10, 4, 8, 6]
GROUPED, DEPTHWISE = partial(conv_bn, groups=3), partial(conv_bn, groups=8)

TABLE = (
    # convolutions
    _net("vgg", Vgg, _images(), "flatten before Linear: a channel of `two` is 16 columns of `hidden`"),
    _net("densenet", Dense, _images(), "concatenation: every norm and reader at an offset of its own"),
    _net("unet", UNet, _images(), "skips by concatenation at both ends, interpolation, transposed convolution"),
    _net(
        "inception", Inception, _images(),
        "three branches of unequal widths; the stem has three readers, one through a pool",
    ),
    _net(
        "shufflenet", Shuffle, _images(),
        "chunk, concatenation and channel shuffle: the stem's two halves have their own readers",
    ),
    _net("squeeze-excite", SqueezeExcite, _images(), "the channel's scale comes from a bottleneck, a second group"),
    _net(
        "transposed", chain((nn.Conv2d, 3, 8, 3, 2, 1), (nn.ReLU,), (nn.ConvTranspose2d, 8, 10, 2, 2),
        (nn.BatchNorm2d, 10), (nn.ReLU,), (nn.ConvTranspose2d, 10, 3, 1)), _images(),
        "ConvTranspose2d: weight is (in, out, …)",
    ),
    _net(
        "separable", chain((conv_bn, 3, 8), (nn.ReLU,), (DEPTHWISE, 8, 8), (nn.ReLU6,), (conv_bn, 8, 14, 1), (nn.ReLU,),
        (partial(conv_bn, groups=14), 14, 28), (nn.Hardswish,), (nn.Conv2d, 28, 3, 1)), _images(),
        "a depthwise convolution shares its channels with the one before; the second makes two channels of each",
    ),
    _net(
        "padded by name", chain((nn.Conv2d, 3, 8, 3, 1, "same"), (nn.BatchNorm2d, 8), (nn.ReLU,),
        (nn.Conv2d, 8, 8, 3, 1, "same", 1, 8), (nn.BatchNorm2d, 8), (nn.ReLU,), (nn.Conv2d, 8, 3, 1)), _images(),
        "padding='same' of a depthwise convolution, as in ConvMixer: another overload of the operator",
    ),
    _net(
        "resnext", chain((conv_bn, 3, 12, 1), (nn.ReLU,), (GROUPED, 12, 18), (nn.ReLU,), (nn.Conv2d, 18, 3, 1)),
        _images(), "three groups: whole groups, or equally many channels of each",
    ),
    _net(
        "groupnorm", chain((nn.Conv2d, 3, 12, 3), (nn.GroupNorm, 4, 12), (nn.ReLU,), (nn.Conv2d, 12, 3, 3)), _images(),
        "GroupNorm mixes three channels: whole groups only, with num_groups",
    ),
    _net(
        "instancenorm", chain((nn.Conv2d, 3, 12, 3), (partial(nn.InstanceNorm2d, affine=True), 12), (nn.ReLU,),
        (nn.Conv2d, 12, 3, 3)), _images(), "InstanceNorm is one norm for each channel: any channels",
    ),
    _net(
        "conv1d", chain((nn.Conv1d, 4, 10, 5), (nn.BatchNorm1d, 10), (nn.PReLU, 10), (nn.MaxPool1d, 2),
        (nn.Conv1d, 10, 3, 3)), _rows(4, 20), "PReLU has a slope for each channel",
    ),
    _net(
        "conv3d", chain((nn.Conv3d, 1, 6, 3), (nn.BatchNorm3d, 6), (nn.ReLU,), (nn.AdaptiveAvgPool3d, 2), (nn.Flatten,),
        (nn.Linear, 48, 4)), _rows(1, 6, 6, 6), "a channel is 8 columns of the Linear",
    ),
    _net(
        "pixel-shuffle", chain((nn.Conv2d, 3, 24, 3), (nn.PixelShuffle, 2), (nn.ReLU,), (nn.Conv2d, 6, 3, 3)),
        _images(8), "four consecutive channels are one after the shuffle",
    ),
    _net(
        "one-channel", chain((nn.Conv2d, 3, 8, 3), (nn.ReLU,), (nn.Conv2d, 8, 1, 3), (nn.Tanh,), (nn.Conv2d, 1, 8, 3),
        (nn.ReLU,), (nn.Conv2d, 8, 3, 1)), _images(),
        "one input channel and groups = 1 is not depthwise; the single channel cannot go",
    ),
    Net("constant-channel", constant_channel, _images(8), "a constant channel is not its constant at the padded edge"),
    _net(
        "spatial-gate", SpatialGate, _images(),
        "the channels of `conv` meet in a mean and a maximum: refused, with reason",
    ),
    # streams
    _net(
        "residual", Residual, _images(),
        "one group for the stream (stem, both blocks, three readers), one inside each block",
    ),
    _net("residual-mlp", ResidualMlp, _rows(6), "as above without norms"),
    _net(
        "option-a", OptionA, _images(),
        "channel i of the stem is channel i + 3 after the zeros; 6 of the 12 have no partner",
    ),
    _net(
        "channels-last", ChannelsLast, _images(),
        "the inner width; the stream is read by LayerNorm, which mixes channels",
    ),
    # gates
    _net("glu", partial(Halves, F.glu), _rows(6), "unit i is rows i and i + 12"),
    _net("chunk-gate", partial(Halves, halves), _rows(6), "the same by chunk and product"),
    _net("swiglu", SwiGlu, _tokens, "two layers for one width; RMSNorm by hand mixes the stream"),
    # attention
    _net(
        "einsum", EinsumAttention, _rows(7, 12),
        "heads are dimension 0 of four bare parameters; q with k, and v with out, by head size",
    ),
    _net(
        "fused-attention", FusedAttention, _rows(7, 12),
        "one Linear to 3 x heads x size, by view, permute and unbind",
    ),
    _net(
        "multihead", SelfAttention, _rows(7, 12),
        "the feed-forward width; heads refused: nn.MultiheadAttention checks that heads x size is the stream's width",
    ),
    _net(
        "encoder-layer", lambda: nn.TransformerEncoderLayer(12, 4, 20, batch_first=True), _rows(7, 12),
        "the same; without gradients PyTorch runs one fused kernel that export does not show",
    ),
    # sharing
    _net("called-twice", CalledTwice, _rows(6), "inputs and outputs of `square` are one group with `first` and `last`"),
    _net(
        "shared-weight", SharedWeight, _tokens,
        "embedding and head hold one weight: its columns are the stream, one group",
    ),
    _net("autoencoder", Autoencoder, _rows(6), "one weight, used and used transposed"),
    _net("unused", Unused, _rows(6), "one site; what is not used stays as it is"),
    # inputs and outputs
    _net("two-by-two", partial(TwoByTwo, lambda *both: both), _both, "keyword inputs; addition couples two layers"),
    _net("dict-output", partial(TwoByTwo, lambda a, b: {"logits": a, "pooled": b}), _both, "the same"),
    _net("dataclass-output", partial(TwoByTwo, Answer), _both, "the same"),
    _net("model-output", model_output, _both, "the same; needs transformers"),
    _net("hidden-output", HiddenOutput, _rows(6), "`first` is an output and stays; `second` is a site"),
    # functions
    _net("functional", Functional, _images(), "no modules: two sites in bare parameters, one with buffers"),
    _net(
        "embedding-mlp", chain((nn.Embedding, 17, 10), (nn.Linear, 10, 16), (nn.ReLU,), (nn.Linear, 16, 4)), _tokens,
        "two sites",
    ),
    _net(
        "mean-over-sequence", partial(Apply, lambda x: F.relu(x).mean(1)), _rows(7, 6),
        "a mean over another dimension is harmless",
    ),
    _net(
        "permutation", partial(Apply, lambda x: F.relu(x[..., PERMUTATION])), _rows(6),
        "a constant index permutes the units",
    ),
    _net("reversed", partial(Apply, lambda x: F.relu(x).flip(-1)), _rows(6), "unit i meets column 11 - i"),
    _net("softmax", partial(Apply, lambda x: x.softmax(-1)), _rows(6), "softmax mixes the units: refused, with reason"),
    _net("parts", Parts, _rows(6), "two sites in one layer"),
    _net("scaled", Scaled, _rows(7, 6), "buffers that have to be cut with the units"),
    _net("weight-norm", weight_norm, _rows(6), "the weight is computed from two parameters by row"),
    _net("lstm", Recurrent, _rows(7, 6), "`wide` is a site; `first` and the LSTM are refused, with reason"),
)  # fmt: skip

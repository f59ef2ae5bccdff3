"""The modules of `zoo.handmade`, one for each wiring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Answer:
    """An output with names; known to torch.export below."""

    logits: Tensor
    pooled: Tensor


torch.export.register_dataclass(Answer, serialized_type_name="zoo.wirings.Answer")


def conv_bn(i: int, o: int, kernel: int = 3, **settings: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False, **settings), nn.BatchNorm2d(o))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_bn(3, 8), conv_bn(8, 12)
        self.hidden, self.last = nn.Linear(12 * 4 * 4, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.max_pool2d(F.relu(self.two(x)), 2)
        return self.last(F.relu(self.hidden(x.flatten(1))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1) for i in range(3))
        self.last = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.last(F.relu(self.norms[3](x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 10, 2, stride=2), conv_bn(12 + 10, 14)
        self.join1, self.last = conv_bn(8 + 14, 9), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = F.relu(self.deep(F.max_pool2d(b, 2)))
        d = F.relu(self.join2(torch.cat([b, self.up2(c)], 1)))
        up = F.interpolate(d, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(F.relu(self.join1(torch.cat([up, a], 1))))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = conv_bn(3, 8), conv_bn(8, 6, 1)
        self.wide = nn.Sequential(conv_bn(8, 5, 1), nn.ReLU(), conv_bn(5, 7))
        self.pooled, self.last = conv_bn(8, 4, 1), nn.Conv2d(17, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return self.last(F.relu(torch.cat([self.narrow(x), self.wide(x), self.pooled(pooled)], 1)))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.branch = nn.Sequential(conv_bn(8, 8, 1), nn.ReLU(), conv_bn(8, 8, groups=8), conv_bn(8, 8, 1), nn.ReLU())
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([kept, self.branch(changed)], 1)
        n, c, h, w = x.shape
        return self.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = conv_bn(3, 12), nn.Conv2d(12, 3, 1)
        self.down, self.up = nn.Linear(12, 4), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
        return self.last(x * scale[:, :, None, None])


class Residual(nn.Module):
    """A stream with BatchNorm that two blocks write and three readers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv_bn(3, 12), nn.Linear(12, 5)
        self.blocks = nn.ModuleList(nn.Sequential(conv_bn(12, 9), nn.ReLU(), conv_bn(9, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.last(x.mean((2, 3)))


class ResidualMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 14), nn.Linear(14, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(14, 20), nn.GELU(), nn.Linear(20, 14)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class OptionA(nn.Module):
    """The shortcut drops every other pixel and pads zero channels on both sides: x reaches channels 3 to 8 of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_bn(3, 6), conv_bn(6, 10, stride=2), conv_bn(10, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        return self.last(F.relu(shortcut + self.two(F.relu(self.one(x)))).mean((2, 3)))


class ChannelsLast(nn.Module):
    """ConvNeXt: depthwise convolution, LayerNorm and two linear layers over the last dimension, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 10, 2, stride=2), nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.norm, self.wide, self.narrow = nn.LayerNorm(10), nn.Linear(10, 24), nn.Linear(24, 10)
        self.scale, self.last = nn.Parameter(torch.ones(10)), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return self.last((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Halves(nn.Module):
    """Linear to 2n, two halves that meet in a product, Linear."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fused, self.last, self.gate = nn.Linear(6, 24), nn.Linear(12, 4), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self.fused(x)))


def halves(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, -1)
    return value * torch.sigmoid(gate)


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(17, 10), RmsNorm(10), nn.Linear(10, 17)
        self.gate, self.up, self.down = (nn.Linear(i, o, bias=False) for i, o in ((10, 22), (10, 22), (22, 10)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class EinsumAttention(nn.Module):
    """Four heads of size 5; the weights are bare parameters of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.empty(4, 12, 5)) for _ in range(3))
        self.out = nn.Parameter(torch.empty(4, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (self.q, self.k, self.v))
        mix = torch.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) / 5**0.5, -1)
        return x + torch.einsum("bhtd,hdc->btc", torch.einsum("bhts,bhsd->bhtd", mix, v), self.out)


class FusedAttention(nn.Module):
    """Queries, keys and values from one linear layer: 3 x 4 heads x 5; a mask that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(12, 60), nn.Linear(20, 12)
        self.register_buffer("mask", torch.ones(7, 7, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, 5).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return x + self.out(y.transpose(1, 2).flatten(2))


class CalledTwice(nn.Module):
    """One square layer called twice: its outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(2):
            x = F.relu(self.square(x))
        return self.last(x)


class SharedWeight(nn.Module):
    """Two modules hold one weight: an embedding and the head over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wide, self.narrow = nn.Embedding(17, 10), nn.Linear(10, 18), nn.Linear(18, 10)
        self.head = nn.Linear(10, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.narrow(F.relu(self.wide(self.embed(tokens)))))


class Autoencoder(nn.Module):
    """The decoder uses the weight of the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(9, 6)), nn.Parameter(torch.empty(9))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weight, self.bias)), self.weight.t())


class Unused(nn.Module):
    """Parameters, a module and a buffer that forward never touches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
        self.spare, self.idle = nn.Linear(12, 12), nn.Parameter(torch.ones(12, 3))
        self.register_buffer("count", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoByTwo(nn.Module):
    """Two inputs, joined by addition; two outputs, packed as asked."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.left, self.right, self.pack = nn.Linear(6, 12), nn.Linear(3, 12), pack
        self.logits, self.pooled = nn.Linear(12, 4), nn.Linear(12, 2)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        h = torch.tanh(self.left(x) + self.right(y))
        return self.pack(self.logits(h), self.pooled(h))


class HiddenOutput(nn.Module):
    """The second output is the first hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.first(x))
        return self.last(F.relu(self.second(h))), h


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(6, 10), nn.LSTM(10, 8, batch_first=True)
        self.wide, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.wide(self.lstm(torch.tanh(self.first(x)))[0])))


class Functional(nn.Module):
    """No module at all: convolution, batch norm and linear layers from bare parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.weight, self.bias = (nn.Parameter(torch.empty(*s)) for s in ((8, 3, 3, 3), (12, 8), (12,)))
        self.gain, self.last = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(4, 12))
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(F.conv2d(x, self.kernel), self.running_mean, self.running_var, self.gain)
        return F.linear(F.relu(F.linear(F.relu(x).amax((2, 3)), self.weight, self.bias)), self.last)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(12, 4, batch_first=True), nn.LayerNorm(12)
        self.wide, self.narrow = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class Apply(nn.Module):
    """Linear, a function of the hidden units, Linear."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(6, 12), between, nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Scaled(nn.Module):
    """A buffer with one number for each unit, and one for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 12))
        self.register_buffer("place", torch.linspace(-1, 1, 7 * 12).view(7, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x) * self.scale + self.place).mean(1))


class SpatialGate(nn.Module):
    """CBAM: the mean and the maximum over the channels steer a gate over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.last = conv_bn(3, 8), nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.last(x * torch.sigmoid(self.gate(torch.cat([x.mean(1, True), x.amax(1, True)], 1))))


class Parts(nn.Module):
    """One layer, split in unequal parts with readers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.small, self.large = nn.Linear(6, 15), nn.Linear(5, 4), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        small, large = F.relu(self.first(x)).split([5, 10], -1)
        return self.small(small) + self.large(large)

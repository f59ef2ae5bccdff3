"""Small functions of parameters, one for each thing that an operator can do to units: the table of the tests of rules.

Every row says how many units can be cut, by site, so that nothing passes by being refused; the rows of `REFUSED` say why
nothing can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """A function of parameters and an input. Sizes of views must come from the parameters, as in good code."""

    def __init__(self, row):
        super().__init__()
        self.row = row
        for i, (name, shape) in enumerate(row.shapes.items()):
            value = normal(*shape, seed=i + 1)
            if name.startswith("var"):
                self.register_buffer(name, value.abs() + 0.5)
            elif name.startswith("mean"):
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, x):
        return self.row.f(self, x)


@dataclass(frozen=True)
class Row:
    """A function f(p, x), the shapes of its parameters and of its input, and the units that can be cut, by site."""

    f: object
    shapes: dict
    x: tuple
    units: dict = field(default_factory=dict)


def mlp(between, *, b=6, x=(3, 5), n=6, **shapes):
    """Linear, something, Linear, on the last axis."""
    return Row(
        lambda p, x: F.linear(between(p, F.linear(x, p.a, p.ab)), p.b, p.bb),
        {"a": (n, x[-1]), "ab": (n,), "b": (4, b), "bb": (4,), **shapes},
        x,
        {"a": n},
    )


def cnn(between, *, n=6, b=6, k=3, size=8, **shapes):
    """Convolution, something, convolution."""
    return Row(
        lambda p, x: F.conv2d(between(p, F.conv2d(x, p.a, p.ab)), p.b, p.bb, padding=1),
        {"a": (n, 3, k, k), "ab": (n,), "b": (2, b, 3, 3), "bb": (2,), **shapes},
        (2, 3, size, size),
        {"a": n},
    )


def units(row, **counts):
    return Row(row.f, row.shapes, row.x, counts)


def heads(p, x, d):
    """(batch, seq, h·d) → (batch, h, seq, d)."""
    return x.view(x.shape[0], x.shape[1], -1, d).transpose(1, 2)


def attention(p, x, **how):
    q, k, v = (heads(p, F.linear(x, w), 3) for w in (p.q, p.k, p.v))
    y = F.scaled_dot_product_attention(q, k, v, **how)
    return F.linear(y.transpose(1, 2).flatten(2), p.o)


def grouped_queries(p, x):
    q, k, v = (heads(p, F.linear(x, w), 3) for w in (p.q, p.k, p.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return F.linear(y.transpose(1, 2).flatten(2), p.o)


def repeated_heads(p, x):
    q, k, v = (heads(p, F.linear(x, w), 3) for w in (p.q, p.k, p.v))
    k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
    return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), p.o)


def by_hand(p, x):
    q, k, v = (heads(p, t, 3) for t in F.linear(x, p.qkv, p.qkvb).chunk(3, -1))
    y = (torch.matmul(q, k.transpose(-1, -2)) / 3**0.5 + torch.ones(4, 4).tril().log()).softmax(-1) @ v
    return F.linear(y.transpose(1, 2).flatten(2), p.o, p.ob)


def batched(p, x):
    """Attention with heads folded into the batch, as F.multi_head_attention_forward does it."""
    n, s = x.shape[:2]
    q, k, v = (F.linear(x, w).transpose(0, 1).reshape(s, -1, 3).transpose(0, 1) for w in (p.q, p.k, p.v))
    y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return F.linear(y.transpose(0, 1).reshape(s, n, -1).transpose(0, 1), p.o)


QKVO = {"q": (12, 5), "k": (12, 5), "v": (12, 5), "o": (4, 12)}
NORM = {"g": (6,), "be": (6,), "mean": (6,), "var": (6,)}


def shuffled(p, x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def under_grad(p, x):
    h = F.linear(x, p.a, p.ab)
    with torch.enable_grad():
        h = h.tanh() * p.s
    return F.linear(h, p.b, p.bb)


def within(p, x):
    h = F.linear(x, p.a)
    with torch.enable_grad():
        y = F.linear(h.relu(), p.b)
    return y * 2


def branch(p, x):
    h = F.linear(x, p.a)
    return F.linear(h, p.b) + F.linear(torch.cond(x.sum() > 0, torch.sin, torch.cos, (h,)), p.c)


#: elementwise functions: of one number,
UNARY = (
    torch.abs,
    torch.cos, torch.atan, torch.ceil, torch.cosh, torch.erf, torch.erfc, torch.exp, torch.exp2, torch.expm1, torch.floor,
    torch.frac, torch.neg, torch.round, torch.sign, torch.sinh, torch.square, torch.tan, torch.trunc, torch.nan_to_num,
    F.celu, F.elu, F.hardshrink, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish, F.relu6,
    F.selu, F.softplus, F.softshrink, F.silu, lambda h: F.threshold(h, 0.2, 0.1), lambda h: h.clamp(min=0.1),
    lambda h: h.clip(-1, 1),
    lambda h: torch.logit(h.sigmoid()), lambda h: torch.rsub(h, 2), lambda h: torch.clamp_min(h, 0.1), lambda h: torch.clamp_max(h, 0.3),
)  # fmt: skip
#: of two,
BINARY = (
    torch.maximum, torch.minimum, torch.copysign, torch.hypot, torch.logaddexp, torch.subtract, torch.multiply,
    torch.divide, torch.true_divide, torch.floor_divide, torch.min, torch.max,
)  # fmt: skip
COMPARISONS = (torch.eq, torch.ne, torch.ge, torch.gt, torch.le, torch.lt, torch.less, torch.greater)
LOGIC = (
    torch.logical_and, torch.logical_or, torch.logical_xor, torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor,
    lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b,
)  # fmt: skip
#: and of positions, whose axis stays with one entry
REDUCTIONS = (
    lambda h: h.amin(2, keepdim=True), lambda h: h.min(3, keepdim=True).values, lambda h: h.logsumexp((2, 3), keepdim=True),
    lambda h: h.prod(3, keepdim=True), lambda h: h.var((2, 3), keepdim=True), lambda h: torch.var_mean(h, 2, keepdim=True)[0],
    lambda h: torch.std_mean(h, 2, keepdim=True)[1], lambda h: (h > 0).any(2, keepdim=True).to(h.dtype),
    lambda h: (h > 0).all(2, keepdim=True).to(h.dtype), lambda h: torch.count_nonzero(h > 0, 2)[:, :, None].to(h.dtype),
    lambda h: torch.norm(h, 2, 2, keepdim=True),
)  # fmt: skip


def in_place(h):
    """Functions that write into what they get, one after the other."""
    for f in (
        "neg_", "exp_", "tanh_", "sigmoid_",
    ):  # fmt: skip
        h = getattr(h.clone(), f)()
    h = h.clone().sub_(0.5).div_(0.7).pow_(3).clamp_(-2, 2)
    for f in (F.elu_, F.hardtanh_, F.leaky_relu_, F.selu_, F.celu_):
        h = h + f(h.clone())
    for f in (F.silu, F.mish, F.hardswish, F.hardsigmoid, F.relu6):
        h = h + f(h.clone(), inplace=True)
    h = h.masked_fill_(h > 0.9, 0.4)
    return h + F.threshold_(h.clone(), 0.1, 0.2) + F.dropout(h.clone(), 0.5, False, inplace=True)


EQUAL = {
    # linear maps
    "linear": mlp(lambda p, h: h.relu()),
    "linear without bias": Row(
        lambda p, x: F.linear(F.linear(x, p.a).tanh(), p.b), {"a": (6, 5), "b": (4, 6)}, (3, 5), {"a": 6}
    ),
    "linear of a transposed parameter": Row(
        lambda p, x: F.linear(F.linear(x, p.a.t()).tanh(), p.b.t()), {"a": (5, 6), "b": (6, 4)}, (3, 5), {"a": 6}
    ),
    "three in a row": Row(
        lambda p, x: F.linear(F.linear(F.linear(x, p.a).relu(), p.b).relu(), p.c),
        {"a": (6, 5), "b": (7, 6), "c": (2, 7)}, (3, 5), {"a": 6, "b": 7},
    ),
    "matmul": Row(lambda p, x: (x @ p.a).relu() @ p.b, {"a": (5, 6), "b": (6, 4)}, (3, 5), {"a": 6}),
    "matmul from the left": Row(
        lambda p, x: p.b @ (p.a @ x).relu(), {"a": (6, 5), "b": (4, 6)}, (5, 3), {"a": 6}
    ),
    "matmul of a batch": Row(
        lambda p, x: torch.matmul(torch.matmul(x, p.a).relu(), p.b), {"a": (5, 6), "b": (6, 4)}, (2, 3, 5), {"a": 6}
    ),
    "matrix times a column": Row(lambda p, x: (x @ p.a).relu() @ p.b, {"a": (5, 6), "b": (6, 1)}, (3, 5), {"a": 6}),
    "bmm": Row(
        lambda p, x: torch.bmm(torch.bmm(x, p.a).relu(), p.b), {"a": (2, 5, 6), "b": (2, 6, 4)}, (2, 3, 5), {"a": 6}
    ),
    "addmm": Row(
        lambda p, x: torch.addmm(p.bb, torch.addmm(p.ab, x, p.a).relu(), p.b),
        {"a": (5, 6), "ab": (6,), "b": (6, 4), "bb": (4,)}, (3, 5), {"a": 6},
    ),
    "addmm from the left": Row(
        lambda p, x: torch.addmm(p.bb, p.b, torch.mm(p.a, x).relu()),
        {"a": (6, 5), "b": (4, 6), "bb": (3,)}, (5, 3), {"a": 6},
    ),
    "einsum": Row(
        lambda p, x: torch.einsum("bsf,fo->bso", torch.einsum("bsd,fd->bsf", x, p.a).relu(), p.b),
        {"a": (6, 5), "b": (6, 4)}, (2, 3, 5), {"a": 6},
    ),
    "einsum over heads": Row(
        lambda p, x: torch.einsum("bshd,hdo->bso", torch.einsum("bsi,ihd->bshd", x, p.a).relu(), p.b),
        {"a": (5, 4, 3), "b": (4, 3, 2)}, (2, 3, 5), {"a": 4, "a[2]": 3},
    ),
    "conv1d": Row(
        lambda p, x: F.conv1d(F.conv1d(x, p.a, p.ab).relu(), p.b, p.bb, stride=2),
        {"a": (6, 3, 3), "ab": (6,), "b": (2, 6, 3), "bb": (2,)}, (2, 3, 12), {"a": 6},
    ),
    "conv2d": cnn(lambda p, h: h.relu()),
    "conv2d of one image": Row(
        lambda p, x: F.conv2d(F.conv2d(x, p.a).relu(), p.b), {"a": (6, 3, 3, 3), "b": (2, 6, 3, 3)}, (3, 8, 8), {"a": 6}
    ),
    "conv3d": Row(
        lambda p, x: F.conv3d(F.conv3d(x, p.a).relu(), p.b, padding="same"),
        {"a": (6, 2, 3, 3, 3), "b": (2, 6, 1, 1, 1)}, (1, 2, 5, 5, 5), {"a": 6},
    ),
    "transposed convolution": Row(
        lambda p, x: F.conv_transpose2d(F.conv_transpose2d(x, p.a, p.ab, stride=2).relu(), p.b, p.bb),
        {"a": (3, 6, 2, 2), "ab": (6,), "b": (6, 2, 3, 3), "bb": (2,)}, (2, 3, 4, 4), {"a": 6},
    ),
    "transposed convolution 1d and 3d": Row(
        lambda p, x: F.conv_transpose3d(F.conv_transpose1d(x, p.a)[..., None, None].relu(), p.b),
        {"a": (3, 6, 2), "b": (6, 2, 3, 1, 1)}, (2, 3, 4), {"a": 6},
    ),
    "depthwise": cnn(lambda p, h: F.conv2d(h, p.d, p.db, groups=p.d.shape[0]).relu(), d=(6, 1, 3, 3), db=(6,)),
    "depthwise with multiplier": cnn(
        lambda p, h: F.conv2d(h, p.d, p.db, groups=p.d.shape[0] // 2).relu(), b=12, d=(12, 1, 3, 3), db=(12,)
    ),
    "depthwise transposed": cnn(
        lambda p, h: F.conv_transpose2d(h, p.d, p.db, groups=p.d.shape[0]), b=12, d=(6, 2, 3, 3), db=(12,)
    ),
    "group convolution": units(cnn(
        lambda p, h: F.conv2d(h, p.d, p.db, groups=p.d.shape[0] // 4).relu(), b=12, d=(12, 2, 3, 3), db=(12,)
    ), a=3),
    # norms
    "batch norm": cnn(lambda p, h: F.batch_norm(h, p.mean, p.var, p.g, p.be), **NORM),
    "batch norm on vectors": mlp(lambda p, h: F.batch_norm(h, p.mean, p.var, p.g, p.be), **NORM),
    "group norm": units(cnn(lambda p, h: F.group_norm(h, p.g.shape[0] // 2, p.g, p.be), g=(6,), be=(6,)), a=3),
    "group norm without parameters": units(cnn(lambda p, h: F.group_norm(h, h.shape[1] // 3)), a=2),
    "instance norm": cnn(lambda p, h: F.instance_norm(h, weight=p.g, bias=p.be), g=(6,), be=(6,)),
    "layer norm over positions": cnn(lambda p, h: F.layer_norm(h, h.shape[2:])),
    "layer norm of heads": units(mlp(
        lambda p, h: F.layer_norm(h.view(3, -1, 2), (2,), p.g, p.be).flatten(1), g=(2,), be=(2,)), a=3),
    "rms norm of heads": units(mlp(lambda p, h: F.rms_norm(h.view(3, -1, 2), (2,), p.g).flatten(1), g=(2,)), a=3),
    "prelu": cnn(lambda p, h: F.prelu(h, p.s), s=(6,)),
    "prelu with one slope": cnn(lambda p, h: F.prelu(h, p.s), s=(1,)),
    # position by position
    "elementwise": mlp(lambda p, h: F.gelu(h) * torch.sigmoid(h) + h.pow(2).add(1).sqrt() - h.clamp(max=0.5)),
    "scale and shift": mlp(lambda p, h: h * p.s + p.t, s=(6,), t=(6,)),
    "a factor for all": mlp(lambda p, h: h * p.s, s=(1,)),
    "dropout": mlp(lambda p, h: F.dropout(h, 0.5, training=False)),
    "in place": mlp(lambda p, h: h.add_(p.s).mul_(2).relu_(), s=(6,)),
    "where": mlp(lambda p, h: torch.where(h > 0, h, p.s), s=(6,)),
    "masked fill": mlp(lambda p, h: h.masked_fill(h < 0.1, 0.2)),
    "residual stream": Row(
        lambda p, x: F.linear((h := F.linear(x, p.a)) + F.linear(F.linear(h, p.b).relu(), p.c), p.d),
        {"a": (6, 5), "b": (7, 6), "c": (6, 7), "d": (2, 6)}, (3, 5), {"a": 6, "b": 7},
    ),
    "gated": Row(
        lambda p, x: F.linear(F.silu(F.linear(x, p.a)) * F.linear(x, p.b), p.c),
        {"a": (6, 5), "b": (6, 5), "c": (2, 6)}, (3, 5), {"a": 6},
    ),
    "glu": units(mlp(lambda p, h: F.glu(h), b=3), a=3),
    "glu over channels": units(cnn(lambda p, h: F.glu(h, 1), b=3), a=3),
    # pieces
    "chunk": units(mlp(lambda p, h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1], b=3), a=3),
    "split": units(mlp(lambda p, h: torch.add(*h.split(h.shape[-1] // 2, -1)), b=3), a=3),
    "unbind": mlp(lambda p, h: torch.add(*torch.stack([h, h.sin()], 1).unbind(1))),
    "unbind of units": units(mlp(lambda p, h: torch.add(*h.view(3, 2, -1).unbind(1)), b=3), a=3),
    "split of a parameter": Row(
        lambda p, x: sum(F.linear(F.linear(x, p.a).relu(), w, b) for w, b in zip(p.w.chunk(2), p.b.chunk(2), strict=True)),
        {"a": (6, 5), "w": (8, 6), "b": (8,)}, (3, 5), {"a": 6},
    ),
    "cat": Row(
        lambda p, x: F.linear(torch.cat([F.linear(x, p.a).relu(), x, F.linear(x, p.b).tanh()], -1), p.c),
        {"a": (6, 5), "b": (7, 5), "c": (2, 18)}, (3, 5), {"a": 6, "b": 7},
    ),
    "cat of the same": mlp(lambda p, h: torch.cat([h, h.sin()], -1), b=12),
    "cat of the sum and one of the terms": Row(
        lambda p, x: F.linear(torch.cat([(s := (a := F.linear(x, p.a)) + F.linear(x, p.b)), s.relu(), a.tanh()], 1), p.c),
        {"a": (6, 5), "b": (6, 5), "c": (2, 18)}, (3, 5), {"a": 6},
    ),
    "cat of the other term": Row(
        lambda p, x: F.linear(torch.cat([(s := F.linear(x, p.a) + (b := F.linear(x, p.b))), s.relu(), b.tanh()], 1), p.c),
        {"a": (6, 5), "b": (6, 5), "c": (2, 18)}, (3, 5), {"a": 6},
    ),
    "cat of positions": cnn(lambda p, h: torch.cat([h, h.sin()], 2)),
    "cat with a token": Row(
        lambda p, x: F.linear(torch.cat([p.t.expand(x.shape[0], -1, -1), F.linear(x, p.a)], 1), p.b),
        {"a": (6, 5), "t": (1, 1, 6), "b": (2, 6)}, (2, 3, 5), {"a": 6},
    ),
    "stack": mlp(lambda p, h: torch.stack([h, h.sin()], 1).amax(1)),
    "stack into units": mlp(lambda p, h: torch.stack([h, h.sin()], 2).flatten(1), b=12),
    "slice of positions": cnn(lambda p, h: h[:, :, 1:-1, ::2]),
    "slice of everything": mlp(lambda p, h: h[:, :]),
    "index of positions": cnn(lambda p, h: h[:, :, torch.tensor([0, 2, 1, 4, 3, 5])]),
    "index of two axes": cnn(lambda p, h: h[:, :, torch.tensor([0, 2, 4]), torch.tensor([1, 1, 0])][..., None]),
    "index select of positions": cnn(lambda p, h: h.index_select(3, torch.tensor([0, 2, 1, 4]))),
    "select": cnn(lambda p, h: torch.stack([h.select(2, 1), h[:, :, -1]], 2)),
    "roll": cnn(lambda p, h: h.roll((1, 2), (2, 3))),
    "flip": cnn(lambda p, h: h.flip(2, 3)),
    "flip of nothing": mlp(lambda p, h: h.flip([])),
    "narrow of positions": cnn(lambda p, h: h.narrow(2, 1, 4)),
    # shapes
    "flatten": Row(
        lambda p, x: F.linear(F.conv2d(x, p.a).relu().flatten(1), p.b),
        {"a": (6, 3, 3, 3), "b": (4, 6 * 9)}, (2, 3, 5, 5), {"a": 6},
    ),
    "flatten in another order": Row(
        lambda p, x: F.linear(F.conv2d(x, p.a).relu().permute(0, 2, 3, 1).flatten(1), p.b),
        {"a": (6, 3, 3, 3), "b": (4, 6 * 9)}, (2, 3, 5, 5), {"a": 6},
    ),
    "view there and back": mlp(lambda p, h: h.view(3, 1, -1).reshape(-1).view(3, -1)),
    "view as pairs": units(mlp(lambda p, h: h.view(3, -1, 2).softmax(-1).flatten(1)), a=3),
    "permute": cnn(lambda p, h: h.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
    "transpose": cnn(lambda p, h: h.transpose(-3, 3).transpose(-1, 1).mT),
    "movedim": cnn(lambda p, h: h.movedim((1, 2), (-1, 0)).movedim((0, -1), (2, 1))),
    "squeeze and unsqueeze": mlp(lambda p, h: h.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1)),
    "unflatten": units(mlp(lambda p, h: h.unflatten(1, (2, h.shape[1] // 2)).sum(1), b=3), a=3),
    "expand": mlp(lambda p, h: h[:, None].expand(-1, 4, -1).mean(1)),
    "repeat": mlp(lambda p, h: h.repeat(2, 2)[:3], b=12),
    "tile of a parameter": units(mlp(lambda p, h: h * p.s.tile(3, 2), s=(3,)), a=3),
    "repeat interleave": mlp(lambda p, h: h.repeat_interleave(3, 1), b=18),
    "pixel shuffle": units(cnn(lambda p, h: F.pixel_shuffle(h, 2), n=12, b=3), a=3),
    "pixel unshuffle": cnn(lambda p, h: F.pixel_unshuffle(h, 2), b=24),
    "channel shuffle by views": units(cnn(shuffled), a=3),
    "channel shuffle": units(cnn(lambda p, h: F.channel_shuffle(h, 2)), a=3),
    "channel shuffle in many groups": units(cnn(lambda p, h: F.channel_shuffle(h, 3)), a=2),
    # what mixes positions
    "average pooling": cnn(lambda p, h: F.avg_pool2d(h, 2)),
    "maximum pooling": cnn(lambda p, h: F.max_pool2d(h, 2, 1)),
    "pooling of one image": Row(
        lambda p, x: F.conv2d(F.max_pool2d(F.conv2d(x, p.a), 2), p.b), {"a": (6, 3, 3, 3), "b": (2, 6, 1, 1)}, (3, 8, 8), {"a": 6}
    ),
    "adaptive pooling": Row(
        lambda p, x: F.linear(F.adaptive_avg_pool2d(F.conv2d(x, p.a).relu(), 2).flatten(1), p.b),
        {"a": (6, 3, 3, 3), "b": (4, 24)}, (2, 3, 8, 8), {"a": 6},
    ),
    "adaptive maximum": cnn(lambda p, h: F.adaptive_max_pool2d(h, 3)),
    "interpolation": cnn(lambda p, h: F.interpolate(h, scale_factor=2, mode="bilinear")),
    "nearest neighbours": cnn(lambda p, h: F.interpolate(h, size=(5, 7))),
    "padding of positions": cnn(lambda p, h: F.pad(h, (1, 2, 0, 1))),
    "reflected positions": cnn(lambda p, h: F.pad(h, (1, 2, 2, 1), mode="reflect")),
    "mean of positions": Row(
        lambda p, x: F.linear(F.conv2d(x, p.a).relu().mean((2, 3)), p.b),
        {"a": (6, 3, 3, 3), "b": (4, 6)}, (2, 3, 5, 5), {"a": 6},
    ),
    "sum and maximum of positions": cnn(lambda p, h: h.sum(2, keepdim=True) + h.amax(-1, keepdim=True)),
    "deviation of positions": cnn(lambda p, h: h - h.std((2, 3), keepdim=True)),
    "norm of positions": cnn(lambda p, h: h / h.norm(dim=(2, 3), keepdim=True)),
    "softmax over positions": cnn(lambda p, h: h.softmax(2)),
    "running sums of positions": cnn(lambda p, h: h.cumsum(-1)),
    "top of positions": cnn(lambda p, h: h.topk(4, 2).values),
    "sorted positions": cnn(lambda p, h: h.sort(-1).values),
    "largest of two": mlp(lambda p, h: torch.max(h, h.sin())),
    # tables and attention
    "embedding": Row(
        lambda p, x: F.linear(F.embedding(x, p.a) * p.s, p.b),
        {"a": (9, 6), "s": (6,), "b": (4, 6)}, torch.tensor([[1, 2, 8], [0, 4, 4]]), {"a": 6},
    ),
    "attention": Row(attention, QKVO, (2, 4, 5), {"q": 4}),
    "attention with a mask": Row(
        lambda p, x: attention(p, x, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril()), QKVO, (2, 4, 5), {"q": 4}
    ),
    "attention that is causal": Row(lambda p, x: attention(p, x, is_causal=True), QKVO, (2, 4, 5), {"q": 4}),
    "attention with a bias for each head": Row(
        lambda p, x: attention(p, x, attn_mask=p.m), {**QKVO, "m": (4, 4, 4)}, (2, 4, 5), {"q": 4}
    ),
    "attention with grouped queries": Row(
        grouped_queries, {"q": (24, 5), "k": (12, 5), "v": (12, 5), "o": (4, 24)}, (2, 4, 5), {"q": 4}
    ),
    "attention with repeated keys": Row(
        repeated_heads, {"q": (24, 5), "k": (12, 5), "v": (12, 5), "o": (4, 24)}, (2, 4, 5), {"q": 4}
    ),
    "attention by hand": Row(by_hand, {"qkv": (36, 5), "qkvb": (36,), "o": (4, 12), "ob": (4,)}, (2, 4, 5), {"qkv": 4}),
    "attention with one head has units in its values": Row(
        lambda p, x: F.linear(
            F.scaled_dot_product_attention(F.linear(x, p.q), F.linear(x, p.k), F.linear(x, p.v)), p.o),
        QKVO, (2, 4, 5), {"v": 12},
    ),
    # families of functions, many at a time
    "functions of one number": mlp(lambda p, h: sum(f(h) for f in UNARY)),
    "functions of one number between bounds": mlp(lambda p, h: sum(f(h.tanh() * 0.9) for f in (
        torch.asin, torch.acos, torch.atanh, torch.asinh, torch.erfinv)) + sum(f(h.abs() + 0.5) for f in (
        torch.log, torch.log2, torch.log10, torch.log1p, torch.rsqrt, torch.reciprocal, torch.sqrt))),
    "functions in place": mlp(lambda p, h: in_place(h)),
    "functions of two numbers": mlp(lambda p, h: sum(f(h, p.s) for f in BINARY) + sum(
        f(h.abs() + 1, p.s.abs() + 1) for f in (torch.xlogy, torch.fmod, torch.remainder, torch.float_power, torch.atan2)), s=(6,)),
    "functions of three": mlp(
        lambda p, h: torch.addcmul(h, h, p.s) + torch.addcdiv(h, h, p.s.abs() + 1) + torch.lerp(h, h.sin(), p.s), s=(6,)),
    "comparisons": mlp(lambda p, h: sum(f(h, p.s).to(h.dtype) * w for w, f in enumerate(COMPARISONS, 1)), s=(6,)),
    "logic": mlp(lambda p, h: sum(w * f(h > 0, h.sin() > 0.3).type_as(h) for w, f in enumerate(LOGIC, 1))
        + torch.logical_not(h > 0.1).to(h.dtype) * h + torch.bitwise_not(h > 0.2).to(h.dtype)
        + torch.isnan(h).to(h.dtype) + torch.isinf(h).to(h.dtype) + torch.isfinite(h).to(h.dtype)),
    "numbers in the shape of units": mlp(
        lambda p, h: h + torch.zeros_like(h) + torch.ones_like(h) + torch.full_like(h, 0.5) * h.clone().contiguous()),
    "pooling along a line": Row(
        lambda p, x: F.conv1d(
            F.adaptive_avg_pool1d(F.adaptive_max_pool1d(F.max_pool1d(F.avg_pool1d(F.conv1d(x, p.a), 2, 1), 2, 1), 6), 5)
            + F.interpolate(F.conv1d(x, p.a), 5) + F.interpolate(F.conv1d(x, p.a), 5, mode="linear"), p.b),
        {"a": (6, 3, 3), "b": (2, 6, 1)}, (2, 3, 12), {"a": 6},
    ),
    "pooling in space": Row(
        lambda p, x: F.conv3d(
            F.adaptive_avg_pool3d(F.adaptive_max_pool3d(F.max_pool3d(F.avg_pool3d(F.conv3d(x, p.a), 2, 1), 2, 1), 3), 2)
            + F.interpolate(F.conv3d(x, p.a), 2) + F.interpolate(F.conv3d(x, p.a), 2, mode="trilinear"), p.b),
        {"a": (6, 2, 2, 2, 2), "b": (2, 6, 1, 1, 1)}, (1, 2, 5, 5, 5), {"a": 6},
    ),
    "interpolation of degree three": cnn(
        lambda p, h: F.interpolate(h, size=(5, 7), mode="bicubic") + F.interpolate(h, size=(5, 7), mode="bicubic", antialias=True)
        + F.interpolate(h, size=(5, 7), mode="bilinear", antialias=True) + F.interpolate(h, size=(5, 7), mode="nearest-exact")),
    "padding of every kind": cnn(lambda p, h: F.pad(h, (1, 1, 1, 1), mode="replicate")
        + F.pad(h, (1, 1, 1, 1), mode="reflect") + torch.constant_pad_nd(h, (1, 1, 1, 1), 0.5)),
    "padding along a line and in space": Row(
        lambda p, x: F.conv1d(F.pad(F.pad(F.conv1d(x, p.a), (1, 1), mode="reflect"), (1, 1), mode="replicate"), p.b)[..., 0]
        + F.conv3d(F.pad(F.pad(F.conv1d(x, p.a)[..., None, None].expand(-1, -1, -1, 3, 3), (1,) * 6, mode="reflect"),
                   (1,) * 6, mode="replicate"), p.c).flatten(2)[..., 0],
        {"a": (6, 3, 3), "b": (2, 6, 1), "c": (2, 6, 1, 1, 1)}, (2, 3, 6), {"a": 6},
    ),
    "reductions of positions": cnn(lambda p, h: sum(f(h) for f in REDUCTIONS)),
    "order among positions": cnn(lambda p, h: h.argsort(-1) * 0.1 + h.cummax(-1).values + h.log_softmax(2)
        + torch.special.softmax(h, 2) + h.median(-1, keepdim=True).values + h.argmax(2, keepdim=True) + h.argmin(3, keepdim=True)),
    "other names of views": cnn(lambda p, h: torch.concat([h.moveaxis(2, 3).swapaxes(2, 3).broadcast_to(h.shape)
        .view_as(h).reshape_as(h).expand_as(h).positive(), h.mT.adjoint()], 2)),
    "views in place": mlp(lambda p, h: h.clone().unsqueeze_(1).squeeze_(1).unsqueeze_(2).transpose_(1, 2).squeeze_(1)),
    "transposed and flat": Row(
        lambda p, x: F.linear(F.linear(x, p.a).T.numpy_T() if hasattr(x, "numpy_T") else F.linear(x, p.a).t().t().ravel()
                              .view(3, -1), p.b),
        {"a": (6, 5), "b": (4, 6)}, (3, 5), {"a": 6},
    ),
    "pieces by their number": units(mlp(lambda p, h: torch.add(*h.tensor_split(2, -1)), b=3), a=3),
    "a batch of products with a sum": Row(
        lambda p, x: torch.baddbmm(p.bb, torch.baddbmm(p.ab, x, p.a).relu(), p.b),
        {"a": (2, 5, 6), "ab": (2, 1, 6), "b": (2, 6, 4), "bb": (2, 1, 4)}, (2, 3, 5), {"a": 6},
    ),
    "dropout of every kind": cnn(lambda p, h: F.alpha_dropout(F.feature_alpha_dropout(F.dropout2d(h, 0.5, False), 0.5, False),
        0.5, False) + F.rrelu(h)),
    # graphs within the graph
    "under another mode of gradients": Row(
        under_grad, {"a": (6, 5), "ab": (6,), "s": (6,), "b": (4, 6), "bb": (4,)}, (3, 5), {"a": 6},
    ),
}  # fmt: skip


REFUSED = {
    "the mean of units": (mlp(lambda p, h: h - h.mean(-1, keepdim=True)), "summed up over its units .mean."),
    "the sum of units": (mlp(lambda p, h: h + h.sum(1, keepdim=True)), "summed up over its units .sum."),
    "the norm of units": (mlp(lambda p, h: h / h.norm(dim=1, keepdim=True)), "summed up over its units"),
    "softmax of units": (mlp(lambda p, h: h.softmax(-1)), "taken together .softmax."),
    "running sums of units": (mlp(lambda p, h: h.cumsum(1)), "taken together .cumsum."),
    "top of units": (mlp(lambda p, h: h.topk(4, -1).values, b=4), "topk"),
    "sorted units": (mlp(lambda p, h: h.sort().values), "sort"),
    "layer norm": (mlp(lambda p, h: F.layer_norm(h, (6,), p.g, p.t), g=(6,), t=(6,)), "normalised over all its units"),
    "rms norm": (mlp(lambda p, h: F.rms_norm(h, (6,), p.g), g=(6,)), "normalised over all its units"),
    "one group": (cnn(lambda p, h: F.group_norm(h, 1, p.g, p.t), g=(6,), t=(6,)), "normalised over all units"),
    "group norm along positions": (
        mlp(lambda p, h: F.group_norm(h, 2, p.g, p.t), x=(3, 4, 5), g=(4,), t=(4,)), "normalised"),
    "instance norm along positions": (mlp(lambda p, h: F.instance_norm(h), x=(3, 4, 5)), "normalised"),
    "batch norm of the batch itself along positions": (
        mlp(lambda p, h: F.batch_norm(h, None, None, training=True), x=(3, 4, 5)), "normalised"),
    "a slice of units": (mlp(lambda p, h: h[:, :4], b=4), "cut at fixed places"),
    "every other unit": (mlp(lambda p, h: h[:, ::2], b=3), "cut at fixed places"),
    "one unit": (mlp(lambda p, h: h * h[:, 2:3]), "cut at fixed places"),
    "a selected unit": (mlp(lambda p, h: h * h.select(1, 2)[:, None]), "single position"),
    "gathered units": (mlp(lambda p, h: h[:, torch.tensor([0, 3, 1])], b=3), "gathered"),
    "selected units": (mlp(lambda p, h: h.index_select(1, torch.tensor([0, 3, 1])), b=3), "index_select"),
    "flipped units": (mlp(lambda p, h: h.flip(1)), "flip"),
    "rolled units": (mlp(lambda p, h: h.roll(1, 1)), "roll"),
    "units rolled with all else": (mlp(lambda p, h: h.roll(1)), "roll"),
    "unequal pieces": (mlp(lambda p, h: torch.cat([h.split([4, 2], 1)[0], h.split([4, 2], 1)[1] * 2], 1)), "unequal"),
    "padded units": (mlp(lambda p, h: F.pad(h, (0, 2)), b=8), "padded"),
    "padded channels": (cnn(lambda p, h: F.pad(h, (0, 0, 0, 0, 1, 1)), b=8), "padded"),
    "pooled units": (mlp(lambda p, h: F.avg_pool1d(h[:, None], 2)[:, 0], b=3), "pooled"),
    "units read as positions": (
        Row(lambda p, x: F.conv1d(F.linear(x, p.a), p.b), {"a": (6, 5), "b": (4, 3, 2)}, (2, 3, 5)), "runs over positions"),
    "units rolled over no axis": (mlp(lambda p, h: torch.roll(h, 1, [])), "roll"),
    "the deviation of everything": (mlp(lambda p, h: h / torch.std(h, False)), "summed up over its units"),
    "pixels of units": (
        Row(lambda p, x: F.linear(F.pixel_shuffle(F.linear(x, p.a)[:, :, :4] + x.new_zeros(2, 4, 4, 1), 2), p.b),
            {"a": (6, 5), "b": (4, 12)}, (2, 4, 4, 5)), "traded for channels"),
    "numbers in the shape of a parameter": (
        Row(lambda p, x: F.linear(F.linear(x, p.a), torch.ones_like(p.b)) + p.b.sum(), {"a": (6, 5), "b": (4, 6)}, (3, 5)),
        "computed weights"),
    "an operator without a rule": (mlp(lambda p, h: torch.linalg.matrix_exp(h[:, :, None] * h[:, None])[..., 0]), "goes through aten.*no rule"),
    "the sum with what is not cut": (mlp(lambda p, h: h + torch.ones(6)), "combined with a tensor that is not cut"),
    "a product of activations over units": (mlp(lambda p, h: h * (h @ h.t()).sum()), "multiplied with another activation"),
    "an output": (Row(lambda p, x: F.linear(x, p.a), {"a": (6, 5)}, (3, 5)), "is an output of the network"),
    "a hidden output": (
        Row(lambda p, x: (F.linear(h := F.linear(x, p.a), p.b), h), {"a": (6, 5), "b": (2, 6)}, (3, 5)),
        "is an output of the network"),
    "units that index": (
        Row(lambda p, x: F.linear(p.t[F.linear(x, p.a).long().clamp(0, 8)], p.b),
            {"a": (6, 5), "t": (9,), "b": (2, 6)}, (3, 5)), "used as an index"),
    "einsum of three": (
        Row(lambda p, x: torch.einsum("bi,fi,of->bo", x, p.a, p.b), {"a": (6, 5), "b": (4, 6)}, (3, 5)), None),
    "a shared matrix within a graph": (
        Row(within, {"a": (6, 5), "b": (4, 6)}, (3, 5)), "read within an inner graph"),
    "units behind a branch": (Row(branch, {"a": (6, 5), "b": (4, 6), "c": (4, 6)}, (3, 5)), "goes through cond"),
    "units that a mask of values picks": (
        Row(lambda p, x: F.linear((h := F.linear(x, p.a)) * h[x[:, 0] > -9].mean(0), p.b),
            {"a": (6, 5), "b": (4, 6)}, (3, 5)), "as many positions"),
    "units that a mask over them picks": (mlp(lambda p, h: h * h[h > -9].sum()), "."),
    "a vector that reads": (
        Row(lambda p, x: F.linear(x, p.a).relu() @ p.b, {"a": (6, 5), "b": (6,)}, (3, 5)), "read by a vector"),
    "units repeated by a tensor": (
        mlp(lambda p, h: h.repeat_interleave(torch.tensor([2, 1, 1, 1, 1, 1]), 1, output_size=7), b=7), "repeated by a tensor"),
}  # fmt: skip

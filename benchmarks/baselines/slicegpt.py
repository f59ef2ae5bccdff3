"""SliceGPT: the residual stream of a Llama-like model is rotated, and the directions of least energy deleted. Calibrated.

RMSNorm commutes with an orthogonal Q: RMS(x Q) = RMS(x) Q. Its gain g goes into the maps that read it, W ← W diag(g), so
that the stream may have other coordinates before every norm, z = x Q_l, and the network computes the same:

    embedding E Q_0,   readers W diag(g) Q_l,   writers Q_{l+1}ᵀ W,   shortcut Q_lᵀ Q_{l+1},   head W diag(g) Q_L.

Q_l are the principal axes of E x xᵀ of the stream before its norm, and all but the first k of its columns are
deleted. The text is run through the network as it has been sliced so far. RMSNorm still divides by the dense width.
There are two shortcuts of k × k for each block, and a head that was tied to the embedding no longer is, as each has
its own Q: all this counts. Attention heads, rotary positions and the hidden width of the FFN stay.

Source: Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns", ICLR 2024,
arXiv:2401.15024, section 3; that slices are made while the axes are computed, before the norm, is of the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from baselines.slicing import principal

__all__ = ["Scaled", "Sliced", "parameters_of", "slicegpt", "width_for"]

#: second moments of the stream, (d, d) → coordinates Q, (d, k)
Axes = Callable[[Tensor], Tensor]


class Scaled(nn.Module):
    """x/√(Σ x²/d + ε) of k ≤ d coordinates, d of the dense network: RMSNorm without a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        """The norm of (…, k)."""
        scaled: Tensor = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / self.width + self.eps)
        return scaled


class Sliced(nn.Module):
    """A decoder block whose residual stream changes its coordinates at each addition.

    Attributes:
        self_attn, mlp: the block's own. norm: without a gain.
        after_attention, after_mlp: shortcuts, (k, k).
    """

    def __init__(self, block: Any, width: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = block.self_attn, block.mlp
        self.norm = Scaled(width, block.input_layernorm.variance_epsilon)
        self.after_attention = nn.Parameter(torch.eye(width), requires_grad=False)
        self.after_mlp = nn.Parameter(torch.eye(width), requires_grad=False)

    def attended(self, z: Tensor, **how: Any) -> Tensor:
        """What attention adds to the stream."""
        added: Tensor = self.self_attn(hidden_states=self.norm(z), **how)[0]
        return added

    def forward(self, z: Tensor, **how: Any) -> Tensor:
        """Z, (batch, length, k) → the same in the coordinates of the next block."""
        z = z @ self.after_attention + self.attended(z, **how)
        out: Tensor = z @ self.after_mlp + self.mlp(self.norm(z))
        return out


def slicegpt(model: Any, k: int, batches: Sequence[Tensor], axes: Axes | None = None) -> Any:
    """The model with a residual stream of k coordinates; its generation and cache work as before.

    Args:
        model: a LlamaForCausalLM; not changed. k: coordinates that stay. batches: calibration text, (B, length) each.
        axes: the coordinates for given second moments; the k principal axes without.
    """
    small = copy.deepcopy(model).eval()
    core, width = small.model, small.config.hidden_size
    find: Axes = axes or (lambda second: principal(second, k))
    with torch.no_grad():
        small.lm_head = _read([small.lm_head], core.norm.weight)[0]  # no longer tied
        states = [core.embed_tokens(ids) for ids in batches]
        Q = find(_second(states))
        core.embed_tokens = _embedding(core.embed_tokens, Q)
        states = [(x.double() @ Q).float() for x in states]
        for i, block in enumerate(core.layers):
            core.layers[i], Q, states = _sliced(block, width, Q, states, find, core.rotary_emb)
        core.norm = Scaled(width, core.norm.variance_epsilon)
        _turn_inputs([small.lm_head], Q)
    return small


def _sliced(
    block: Any, width: int, Q: Tensor, states: list[Tensor], find: Axes, rotary: nn.Module
) -> tuple[Sliced, Tensor, list[Tensor]]:
    """A block with its coordinates before, its text in them → the block sliced, and both behind it."""
    attention, mlp = block.self_attn, block.mlp
    readers = [attention.q_proj, attention.k_proj, attention.v_proj]
    attention.q_proj, attention.k_proj, attention.v_proj = _read(readers, block.input_layernorm.weight)
    mlp.gate_proj, mlp.up_proj = _read([mlp.gate_proj, mlp.up_proj], block.post_attention_layernorm.weight)
    new = Sliced(block, width)

    _turn_inputs([attention.q_proj, attention.k_proj, attention.v_proj], Q)
    full = [_back(z, Q) + new.attended(z, **_how(z, rotary)) for z in states]
    middle = find(_second(full))
    states = [(x.double() @ middle).float() for x in full]
    _turn_outputs(attention.o_proj, middle)
    new.after_attention = nn.Parameter((Q.T @ middle).float(), requires_grad=False)

    _turn_inputs([mlp.gate_proj, mlp.up_proj], middle)
    full = [_back(z, middle) + mlp(new.norm(z)) for z in states]
    after = find(_second(full))
    states = [(x.double() @ after).float() for x in full]
    _turn_outputs(mlp.down_proj, after)
    new.after_mlp = nn.Parameter((middle.T @ after).float(), requires_grad=False)
    return new, after, states


def _how(z: Tensor, rotary: nn.Module) -> dict[str, Any]:
    """Further arguments of attention over whole sequences: without a mask it is causal."""
    positions = torch.arange(z.shape[1])[None]
    return {"position_embeddings": rotary(z, positions), "attention_mask": None}


def _back(z: Tensor, Q: Tensor) -> Tensor:
    """The stream in its first coordinates, as far as it is still there."""
    return (z.double() @ Q.T).float()


def _second(states: Sequence[Tensor]) -> Tensor:
    """E x xᵀ, (d, d) float64."""
    rows = [x.flatten(0, -2).double() for x in states]
    total: Tensor = sum((x.T @ x for x in rows[1:]), rows[0].T @ rows[0])
    return total / sum(len(x) for x in rows)


def _read(maps: Sequence[nn.Linear], gain: Tensor) -> list[nn.Linear]:
    """The maps with the gain of the norm before them, as maps of their own."""
    return [_linear(one.weight.double() * gain.double(), one.bias) for one in maps]


def _turn_inputs(maps: Sequence[nn.Linear], Q: Tensor) -> None:
    """W ← W Q."""
    for one in maps:
        one.weight = nn.Parameter((one.weight.double() @ Q).float(), requires_grad=False)
        one.in_features = Q.shape[1]


def _turn_outputs(one: nn.Linear, Q: Tensor) -> None:
    """W ← Qᵀ W, and the bias alike."""
    one.weight = nn.Parameter((Q.T @ one.weight.double()).float(), requires_grad=False)
    one.out_features = Q.shape[1]
    if one.bias is not None:
        one.bias = nn.Parameter((Q.T @ one.bias.double()).float(), requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.float(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def _embedding(table: nn.Embedding, Q: Tensor) -> nn.Embedding:
    made: nn.Embedding = nn.Embedding.from_pretrained(
        (table.weight.double() @ Q).float(), padding_idx=table.padding_idx
    )
    return made


def parameters_of(model: Any, k: int, *, blocks: bool = False) -> int:
    """Numbers of the sliced model: two shortcuts for each block, and a head apart from the embedding.

    Args:
        model: the dense one. k: coordinates that stay. blocks: those of the blocks alone.
    """
    config, layers = model.config, len(model.model.layers)
    d: int = config.hidden_size
    inner = sum(p.numel() for one in model.model.layers for p in one.parameters() if p.dim() == 2)
    total: int = inner // d * k + 2 * layers * k * k
    return total if blocks else total + 2 * int(config.vocab_size) * k


def width_for(model: Any, limit: int, *, blocks: bool = False) -> int:
    """The largest k at which the sliced model has no more numbers than `limit`; arguments as in `parameters_of`."""
    widths = range(1, model.config.hidden_size + 1)
    return max(k for k in widths if parameters_of(model, k, blocks=blocks) <= limit)

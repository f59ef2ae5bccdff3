"""Attributes of modules that tell sizes, and how they follow the tensors.

Two tables. In the first, a class says which of its attributes is the size of which tensor: these can be read off
the tensors. The second is for attributes of the modules around them, such as a number of heads: what such a name
means is written down, and it is changed only where its value is the one that the dense network must have there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from coreprune.model.site import Location, Site
from coreprune.model.tensors import tensors_of

__all__ = ["Followed", "Shrunk", "attributes", "follow"]

Sizes = dict[str, Any]


class Followed(NamedTuple):
    """An attribute that changes with a cut.

    Attributes:
        module: path of the module. attribute: its name; after a dot a field of an object that the module then gets
            for its own, as it may be shared.
        old: its value. new: that after the cut.
    """

    module: str
    attribute: str
    old: int
    new: int


class Shrunk(Protocol):
    """A site and which of its units are kept."""

    @property
    def site(self) -> Site:
        """The site."""

    @property
    def kept(self) -> Tensor:
        """Indices of the kept units."""


# ---------------------------------------------------------------- what the tensors of a module tell


def _convolution(module: nn.Module) -> Sizes:
    """The groups are what they were if channels go from within them, and fewer if whole groups go."""
    assert isinstance(module, _ConvNd)
    rows, inner = module.weight.shape[:2]
    turned = isinstance(module, _ConvTransposeNd)
    old_rows, old_inner = module.out_channels, module.in_channels // module.groups
    if turned:
        old_rows, old_inner = module.in_channels, module.out_channels // module.groups
    groups = module.groups
    if groups > 1 and inner == old_inner:
        groups = rows // (old_rows // groups)
    ins, outs = (rows, inner * groups) if turned else (inner * groups, rows)
    return {"in_channels": ins, "out_channels": outs, "groups": groups}


def _group_norm(module: nn.Module) -> Sizes:
    """The width of a group stays."""
    assert isinstance(module, nn.GroupNorm)
    channels = len(module.weight)
    return {"num_channels": channels, "num_groups": channels // (module.num_channels // module.num_groups)}


def _shape(module: nn.Module) -> Sizes:
    return {"normalized_shape": tuple(module.weight.shape)}  # type: ignore[arg-type]


def _sizes(**places: tuple[str, int]) -> Callable[[nn.Module], Sizes]:
    """A row of the table whose attributes are each the size of one axis of one tensor."""

    def row(module: nn.Module) -> Sizes:
        return {name: getattr(module, tensor).shape[axis] for name, (tensor, axis) in places.items()}

    return row


def _features(module: nn.Module) -> Sizes:
    size = module.weight if module.weight is not None else module.running_mean
    return {"num_features": len(size)}  # type: ignore[arg-type]


#: class, or its full name where it is not of torch → its size attributes as its tensors say they must be
_TABLE: dict[type[nn.Module] | str, Callable[[nn.Module], Sizes]] = {
    nn.Linear: _sizes(in_features=("weight", 1), out_features=("weight", 0)),
    nn.Bilinear: _sizes(out_features=("weight", 0), in1_features=("weight", 1), in2_features=("weight", 2)),
    _ConvNd: _convolution,
    _NormBase: _features,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _shape,
    nn.RMSNorm: _shape,
    nn.Embedding: _sizes(num_embeddings=("weight", 0), embedding_dim=("weight", 1)),
    nn.EmbeddingBag: _sizes(num_embeddings=("weight", 0), embedding_dim=("weight", 1)),
    nn.PReLU: _sizes(num_parameters=("weight", 0)),
    "transformers.pytorch_utils.Conv1D": _sizes(nx=("weight", 0), nf=("weight", 1)),
}


def attributes(module: nn.Module) -> Sizes:
    """The size attributes of a module as its tensors say they must be.

    Where groups of channels are involved, what the attributes still say tells how wide a group is.

    Example:
        >>> attributes(nn.Linear(3, 5))
        {'in_features': 3, 'out_features': 5}
        >>> layer = nn.Conv2d(8, 8, 3, groups=8)
        >>> layer.weight = nn.Parameter(layer.weight[:5])
        >>> attributes(layer)
        {'in_channels': 5, 'out_channels': 5, 'groups': 5}
    """
    for kind in type(module).__mro__:
        row = _TABLE.get(kind) or _TABLE.get(f"{kind.__module__}.{kind.__qualname__}")
        if row is not None:
            return row(module) if _sized(module) else {}
    return {}


def _sized(module: nn.Module) -> bool:
    """Whether the module has a tensor to tell its sizes."""
    return any(getattr(module, name, None) is not None for name in ("weight", "running_mean"))


# ---------------------------------------------------------------- what the modules around must be told


class _Around(NamedTuple):
    """Sizes of a cut as the modules around it see them.

    Attributes:
        units, kept: of the site.
        columns: entries of one unit in the map that reads it; 0 where the site is only a part of what it reads.
        clear: no other axis of the site's tensors has as many entries as the site has units.
    """

    units: int
    kept: int
    columns: int
    clear: bool


Rule = Callable[[int, _Around], int | None]


def _count(value: int, a: _Around) -> int | None:
    """A number of heads: every unit has as many."""
    return value // a.units * a.kept if a.columns and value % a.units == 0 else None


def _width(value: int, a: _Around) -> int | None:
    """Heads times the size of a head."""
    return a.kept * a.columns if a.columns and value == a.units * a.columns else None


def _inner(value: int, a: _Around) -> int | None:
    """A number of units."""
    return a.kept if value == a.units else None


def _loose(value: int, a: _Around) -> int | None:
    """The same, under a name that may also mean the width around the block."""
    return a.kept if value == a.units and a.clear else None


#: attributes of modules around a site of heads
_HEADS: dict[str, Rule] = {
    **dict.fromkeys(
        ("num_heads", "n_heads", "num_attention_heads", "num_attn_heads", "n_head", "nhead", "heads", "n_local_heads"),
        _count,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "kv_heads"), _count),
    **dict.fromkeys(
        ("all_head_size", "split_size", "inner_dim", "attn_dim", "attention_dim", "val_attn_dim", "dh"), _width
    ),
}
#: and of modules around any other site
_WIDTHS: dict[str, Rule] = {
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), _inner),
    **dict.fromkeys(("intermediate_dim", "inner_dim", "ffn_dim", "ffn_hidden_size", "dim_feedforward", "d_ff"), _inner),
    **dict.fromkeys(("mlp_dim", "expert_dim", "hidden_features", "dim_se"), _inner),
    **dict.fromkeys(("hidden_dim", "hidden_size", "hidden_channels", "mlp_hidden_dim"), _loose),
}
#: class of an attention module → fields of the configuration, shared with all others, that its forward pass reads
_CONFIGURED = {"Phi3Attention": ("num_attention_heads",)}
#: kinds of sites whose units are no width of a block
_STREAMS = {"residual", "embedding"}


def follow(model: nn.Module, cuts: Iterable[Shrunk]) -> list[Followed]:
    """Attributes of the dense network that must follow its cuts, beside those that the tensors tell.

    Args:
        model: the dense network; not changed.
        cuts: anything with a site and the units kept.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mlp_dim, self.up, self.down = 8, nn.Linear(4, 8), nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return self.down(self.up(x).relu().view(-1, self.mlp_dim))
        >>> from types import SimpleNamespace as Cut
        >>> from coreprune.model.site import Reader
        >>> at = [Location(name, axis) for name, axis in [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]]
        >>> site = Site("up", "linear", 8, "relu", (), at[0], at[1], (Reader(at[2], "down.bias"),))
        >>> follow(Block(), [Cut(site=site, kept=[0, 5, 6])])
        [Followed(module='', attribute='mlp_dim', old=8, new=3)]
    """
    tensors, modules = tensors_of(model), dict(model.named_modules(remove_duplicate=False))
    found: dict[tuple[str, str], Followed] = {}
    for cut in cuts:
        site, kept = cut.site, len(cut.kept)
        if site.kind in _STREAMS or kept == site.units:
            continue
        table = _HEADS if site.kind == "heads" else _WIDTHS
        for path, module in _around(modules, site):
            names = _held(module, table, config=site.kind == "heads")
            if not names:
                continue
            around = _Around(site.units, kept, _columns(site, path, tensors), _clear(site, tensors))
            for one in _changes(path, module, names, table, around):
                found.setdefault((one.module, one.attribute), one)
    return list(found.values())


def _held(module: nn.Module, table: Mapping[str, Rule], *, config: bool) -> list[str]:
    """Names in the table that a module holds, and fields of a configuration that it reads."""
    fields = _CONFIGURED.get(type(module).__name__, ()) if config else ()
    own = vars(module).keys() & table.keys()  # of most modules nothing
    return [*(name for name in table if name in own), *(f"config.{name}" for name in fields)] if own or fields else []


def _changes(
    path: str, module: nn.Module, names: Iterable[str], table: Mapping[str, Rule], around: _Around
) -> Iterator[Followed]:
    """The attributes of one module that change."""
    for name in names:
        rule = table[name.removeprefix("config.")]
        value = value_of(module, name)
        if isinstance(value, int) and not isinstance(value, bool):
            new = rule(value, around)
            if new is not None and new != value:
                yield Followed(path, name, value, new)


def value_of(module: nn.Module, attribute: str) -> Any:
    """An attribute that the module itself holds, or a field of one; None if there is none."""
    first, *rest = attribute.split(".")
    return reduce(lambda value, name: getattr(value, name, None), rest, vars(module).get(first))


def _around(modules: Mapping[str, nn.Module], site: Site) -> list[tuple[str, nn.Module]]:
    """The modules that hold the site's tensors and those up to two levels above, within what all of them share."""
    holders = list(dict.fromkeys(tuple(at.tensor.split(".")[:-1]) for at in site.locations if at.tensor))
    common = reduce(_prefix, holders)
    paths: dict[str, None] = {}
    for holder in holders:
        for depth in range(len(holder), max(len(holder) - 3, len(common) - 1), -1):
            paths[".".join(holder[:depth])] = None
    return [(path, modules[path]) for path in paths if path in modules]


def _prefix(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    same = [x == y for x, y in zip(a, b, strict=False)]
    return a[: [*same, False].index(False)]


def _columns(site: Site, path: str, tensors: Mapping[str, Tensor]) -> int:
    """Entries of a unit in its reader, the one within the module if there is one; 0 if it reads other units too."""
    weights = [reader.weight for reader in site.readers]
    at = next((at for at in weights if at.tensor.startswith(f"{path}." if path else "")), weights[0])
    return at.span if _size(at, tensors) == site.units * at.span else 0


def _clear(site: Site, tensors: Mapping[str, Tensor]) -> bool:
    """Whether only the site's own axes are as long as it has units."""
    shapes = [(at.axis, tensors[at.tensor].shape) for at in site.locations if at.tensor in tensors]
    return all(size != site.units for axis, shape in shapes for a, size in enumerate(shape) if a != axis)


def _size(at: Location, tensors: Mapping[str, Tensor]) -> int:
    return tensors[at.tensor].shape[at.axis] if at.tensor in tensors else 0

"""Which fields of a Hugging Face configuration say how wide a network is, and what they must say of a smaller one.

Nothing is derived from a field's name alone. A change is tried, the class is made from it on the meta device,
without memory, and all tensors are compared; only a configuration that makes every tensor as it is gets out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Change", "Followed", "Place", "followed", "governed", "write_fields"]

Shape = tuple[int, ...]
Change = tuple[str, str, int, int]  # site, kind, units before, units after
Place = tuple[str, int]  # a tensor and one of its axes
Path = tuple[str | int, ...]  # keys into the configuration as nested dicts and lists
Update = tuple[tuple[Path, Any], ...]

#: numbers of units; None means "some multiple of the width", and a number takes its place
WIDTHS = frozenset({
    "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "ffn_hidden_size",
    "hidden_dim", "d_inner", "ff_dim", "dim_feedforward", "feed_forward_size", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size", "mlp_hidden_size", "mlp_dim", "embedding_size",
    "word_embed_proj_dim", "embedding_dim", "projection_dim", "hidden_sizes", "out_channels", "in_channels",
    "conv_dim", "decoder_hidden_size", "neck_hidden_sizes", "pooler_output_size",
})  # fmt: skip
#: factors that make numbers of units
RATIOS = frozenset({
    "mlp_ratio", "mlp_ratios", "expand_ratio", "expand_ratios", "depth_multiplier", "width_coefficient",
    "width_multiplier", "squeeze_expansion_ratio", "expansion_ratio",
})  # fmt: skip
HEADS = (
    "num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
    "num_key_value_heads", "num_kv_heads",
)  # fmt: skip
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
#: switches that give linear layers biases
BIASES = frozenset({
    "mlp_bias", "attention_bias", "use_bias", "bias", "qkv_bias", "use_qkv_bias", "attention_out_bias",
    "add_bias_linear",
})  # fmt: skip


@dataclass(frozen=True)
class Followed:
    """A configuration that fits a smaller network, or why there is none.

    Attributes:
        config: of the same class as the dense one; None if no setting of the fields makes these tensors.
        updates: field → new value, for the eye.
        zeros: biases that the class then makes and the smaller network does not have: they must be zero.
        mismatch: the first tensor that does not fit, in words; empty if there is a configuration.
    """

    config: Any | None
    updates: Mapping[str, Any] = field(default_factory=dict)
    zeros: Mapping[str, Shape] = field(default_factory=dict)
    mismatch: str = ""


def followed(
    kind: type[torch.nn.Module],
    config: Any,
    dense_shapes: Mapping[str, Shape],
    small_shapes: Mapping[str, Shape],
    changes: Iterable[Change],
) -> Followed:
    """The configuration of the smaller network.

    Fields change one at a time, each time the one that leaves the fewest axes wrong, as long as fewer are; what
    they change to comes from `changes`.

    Args:
        kind: the model's class.
        config: of the dense network; not changed.
        dense_shapes: shapes of its state dict.
        small_shapes: shapes of the smaller network's state dict.
        changes: what became of each site.
    """
    settings = config.to_dict()
    found = _made(kind, config, settings)
    if isinstance(found, str) or _wrong(found, dense_shapes, {}):
        why = found if isinstance(found, str) else _first(found, dense_shapes)
        return Followed(None, mismatch=f"the configuration does not describe the dense network: {why}")
    steps = {(kind_, before, after) for _, kind_, before, after in changes if before != after}
    done: dict[Path, Any] = {}
    while wrong := _wrong(found, small_shapes, dense_shapes):
        best = None
        for update in _updates(settings, sorted(steps)):
            if any(path in done for path, _ in update):
                continue
            made = _made(kind, config, _with(settings, update))
            if not isinstance(made, str) and (left := _wrong(made, small_shapes, dense_shapes)) < wrong:
                best, found_best, wrong = update, made, left
        if best is None:
            return Followed(None, mismatch=_first(found, small_shapes))
        settings, found = _with(settings, best), found_best
        done |= dict(best)
    zeros = {name: shape for name, shape in found.items() if name not in small_shapes}
    updates = {".".join(map(str, path)): value for path, value in done.items()}
    return Followed(type(config).from_dict(settings), updates, zeros)


def write_fields(config: Any, updates: Mapping[str, Any]) -> None:
    """Set fields of a configuration in place, by the dotted paths of `Followed.updates`.

    The object stays the same: it holds more than its fields, such as which implementation of attention is used.
    """
    for path, value in updates.items():
        keys = path.split(".")
        at = int(keys.pop()) if keys[-1].isdigit() else None  # an entry of a list
        holder = config
        for key in keys[:-1]:
            holder = getattr(holder, key)
        if at is None:
            setattr(holder, keys[-1], value)
        else:
            many = getattr(holder, keys[-1])
            setattr(holder, keys[-1], type(many)([*many[:at], value, *many[at + 1 :]]))


def governed(
    kind: type[torch.nn.Module],
    config: Any,
    dense_shapes: Mapping[str, Shape],
    sites: Mapping[str, tuple[int, Sequence[Place]]],
) -> dict[str, tuple[str, ...]]:
    """Which sites a field of the configuration speaks of: they must get one width, for the usual loader to open it.

    Each field is made smaller on the meta device. It speaks of the sites all of whose places shrink with it, if these
    have equally many units and nothing else shrinks.

    Args:
        kind: the model's class.
        config: of the dense network.
        dense_shapes: shapes of its state dict.
        sites: name → (units, the places that shrink with them); places that are not in `dense_shapes` do not count.

    Returns:
        field → names of the sites. A site that is in no group has no field: cut, it needs a format of its own.
    """
    settings = config.to_dict()
    homes = {name: {p for p in places if p[0] in dense_shapes} for name, (_, places) in sites.items()}
    taken: set[str] = set()
    result: dict[str, tuple[str, ...]] = {}
    for name, update in _probes(settings):
        if name in result:
            continue
        made = _made(kind, config, _with(settings, update))
        if isinstance(made, str) or set(made) != set(dense_shapes):
            continue
        moved = {
            (tensor, axis)
            for tensor, shape in made.items()
            for axis, (new, old) in enumerate(zip(shape, dense_shapes[tensor], strict=False))
            if new != old
        }
        inside = tuple(site for site, places in homes.items() if places and places <= moved)
        covered = set().union(*(homes[site] for site in inside))
        if inside and covered == moved and len({sites[s][0] for s in inside}) == 1 and not taken & set(inside):
            result[name] = inside
            taken |= set(inside)
    return result


def _made(kind: type[torch.nn.Module], config: Any, settings: Mapping[str, Any]) -> dict[str, Shape] | str:
    """Shapes of the state dict that a configuration makes, or why it makes none."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = kind(type(config).from_dict(copy.deepcopy(dict(settings))))
    except Exception as error:  # whatever the class raises for a setting that it cannot have
        return " ".join(str(error).split()) or type(error).__name__
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _wrong(made: Mapping[str, Shape], wanted: Mapping[str, Shape], dense: Mapping[str, Shape]) -> int:
    """How many axes are wrong; a bias that is made, was not in the dense network, and can be zero, is not."""
    count = 0
    for name in made.keys() | wanted.keys():
        a, b = made.get(name), wanted.get(name)
        if a is None or b is None:
            spare = b is None and bool(dense) and name not in dense and name.endswith("bias")
            count += 0 if spare else 2
        else:
            count += sum(x != y for x, y in zip(a, b, strict=False)) + 4 * abs(len(a) - len(b))
    return count


def _first(made: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """The first tensor that does not fit, in words."""
    for name, shape in wanted.items():
        if name not in made:
            return f"{name} {shape} is in the network, and the configuration does not make it"
        if made[name] != shape:
            return f"{name} is {shape}, and the configuration makes it {made[name]}"
    extra = next((name for name in made if name not in wanted), "")
    return f"the configuration makes {extra} {made.get(extra)}, which the network does not have"


def _with(settings: Mapping[str, Any], update: Update) -> dict[str, Any]:
    new: Any = copy.deepcopy(dict(settings))
    for path, value in update:
        at = new
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    return new  # type: ignore[no-any-return]


def _parts(settings: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The configuration and those inside it, such as text_config."""
    yield path, settings
    for key, value in settings.items():
        if isinstance(value, Mapping) and (key.endswith("_config") or key in {"encoder", "decoder"}):
            yield from _parts(value, (*path, key))


def _numbers(settings: Mapping[str, Any], names: frozenset[str]) -> Iterator[tuple[Path, Any]]:
    """Fields of these names that are numbers or None, and entries of those that are lists."""
    for path, part in _parts(settings):
        for key in sorted(names & part.keys()):
            if isinstance(part[key], (list, tuple)):
                yield from (((*path, key, i), one) for i, one in enumerate(part[key]) if _number(one))
            elif part[key] is None or _number(part[key]):
                yield (*path, key), part[key]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _updates(settings: Mapping[str, Any], steps: Sequence[tuple[str, int, int]]) -> Iterator[Update]:
    """Everything worth a trial, given the kinds of what was cut and the units before and after."""
    for kind, before, after in steps:
        if kind == "heads":
            for path, part in _parts(settings):
                yield from _head_updates(path, part, before, after)
        else:
            yield from _width_updates(settings, before, after)
    for path, part in _parts(settings):
        yield from ((((*path, key), True),) for key in sorted(BIASES & part.keys()) if part[key] is False)


def _width_updates(settings: Mapping[str, Any], before: int, after: int) -> Iterator[Update]:
    """Fields that say how many units there are, or a multiple of it, or a factor of it."""
    same = []
    for where, value in _numbers(settings, WIDTHS):
        if value is None or value == before:
            same += [where] * (value == before)
            yield ((where, after),)
        elif isinstance(value, int) and value * after % before == 0:
            yield ((where, value * after // before),)
    if len(same) > 1:
        yield tuple((where, after) for where in same)
    for where, value in _numbers(settings, RATIOS):
        if value and isinstance(value, int) and value * after % before == 0:
            yield ((where, value * after // before),)
        elif value:
            scaled = value * after / before  # and the next number, as the class may round down
            yield from (((where, ratio),) for ratio in (scaled, math.nextafter(scaled, math.inf)))


def _head_updates(path: Path, part: Mapping[str, Any], before: int, after: int) -> Iterator[Update]:
    """Heads, alone or together with those of keys and values; the size of a head is written down, so that it stays."""
    fields = [key for key in HEADS if isinstance(part.get(key), int) and part[key] * after % before == 0]
    size = part.get("head_dim") or _head_size(part)
    explicit: Update = () if "d_kv" in part or size is None else (((*path, "head_dim"), size),)
    for keys in [fields] * (len(fields) > 1) + [[key] for key in fields]:
        yield (*(((*path, key), part[key] * after // before) for key in keys), *explicit)


def _head_size(part: Mapping[str, Any]) -> int | None:
    heads = next((part[key] for key in HEADS if isinstance(part.get(key), int)), 0)
    hidden = next((part[key] for key in HIDDEN if isinstance(part.get(key), int)), 0)
    return hidden // heads if heads and hidden % heads == 0 else None


def _probes(settings: Mapping[str, Any]) -> Iterator[tuple[str, Update]]:
    """For every field a few smaller values, to see what they change."""
    for where, value in _numbers(settings, WIDTHS):
        name = ".".join(map(str, where))
        if value is None:
            yield from ((name, ((where, size),)) for size in (8, 16))
        else:
            yield from ((name, ((where, size),)) for size in (value // 2, value - 1) if size >= 1)
    for where, value in _numbers(settings, RATIOS):
        half = value // 2 if isinstance(value, int) else (value or 0) / 2
        if half:
            yield ".".join(map(str, where)), ((where, half),)
    for path, part in _parts(settings):
        counts = [part[key] for key in HEADS if isinstance(part.get(key), int)]
        for after in range(min(counts, default=1) - 1, 0, -1):
            for update in _head_updates(path, part, min(counts), after):
                heads = [str(where[-1]) for where, _ in update if where[-1] in HEADS]
                yield ".".join(map(str, (*path, " and ".join(heads)))), update

"""The user's own inputs, where there are some: moments measured in the real network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError
from coreprune.maths.gram import Moments
from coreprune.maths.propagate import Law
from coreprune.maths.streaming import Stream
from coreprune.model.capture import Arguments
from coreprune.model.site import Site
from coreprune.surgery.apply import install, spared_copy

__all__ = ["Data", "Drawn"]


@dataclass(frozen=True)
class Data:
    """Empirical moments of the hidden units on batches of inputs.

    Attributes:
        loader: yields tensors, or tuples and lists whose first entry is the input.
        sequential: measure the units of a site in the network as the cuts before left it, one pass over
            the loader for each site; otherwise all sites in one pass, in the dense network.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [torch.randn(16, 4) for _ in range(3)]
        >>> cp.prune(net, units={"0": 3}, prior=cp.Data(batches)).plan.recipe["prior"]
        'measured on the data given'
    """

    loader: Iterable[Any]
    sequential: bool = True

    def __post_init__(self) -> None:
        """Refuse what can be walked over and yields no batches."""
        if isinstance(self.loader, (Tensor, Mapping, str)):
            raise InvalidInputError(
                f"the data are a {type(self.loader).__name__} where a loader belongs: give a list of batches, such as "
                "[x] or x.split(64)"
            )

    @property
    def data_used(self) -> bool:
        """True."""
        return True

    @property
    def said(self) -> str:
        """Where the inputs come from, in words."""
        return "measured on the data given"

    def named(self, features: int, radius: float) -> str:
        """The prior in words."""
        return self.said + ("" if self.sequential else ", in one pass")

    def law(self, model: nn.Module, site: Site, dense: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Law:
        """The law of one site's units, dense and as they are now.

        Args:
            model: gives the structure. site: the one wanted.
            dense: its tensors. now: the tensors as the cuts before left them.
        """
        n = site.units
        networks = [_in_place_of(model, dense), _in_place_of(model, now)]
        stream = Stream(2 * n)
        for x in self._batches():
            both = [_hidden(network, [site], x)[site.name] for network in networks]
            stream.add(torch.cat(both, 1))
        mean, spread = stream.moments()
        return Law(Moments(mean[n:], spread[n:, n:]), mean[:n], spread[:n, n:], spread[:n, :n])

    def laws(self, model: nn.Module, sites: Iterable[Site], dense: Mapping[str, Tensor]) -> dict[str, Law]:
        """The laws of all sites' units in the dense network, in one pass."""
        sites = tuple(sites)
        network = _in_place_of(model, dense)
        streams = {site.name: Stream(site.units) for site in sites}
        for x in self._batches():
            for name, hidden in _hidden(network, sites, x).items():
                streams[name].add(hidden)
        return {name: Law(Moments(*stream.moments())) for name, stream in streams.items()}

    def calls(self) -> Iterator[Arguments]:
        """The inputs as (args, kwargs) of calls: a dict is keyword arguments, of (input, label) the input counts."""
        seen = False
        for batch in self.loader:
            if isinstance(batch, Mapping):
                yield (), dict(batch)
            elif isinstance(batch, Tensor):
                yield (batch,), {}
            elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], (Tensor, Mapping)):
                yield from Data([batch[0]]).calls()
            else:
                raise InvalidInputError(
                    f"the data yield a {type(batch).__name__}: yield tensors, dicts of keyword arguments, or (input, …)"
                )
            seen = True
        if not seen:
            raise InvalidInputError("the data yielded no inputs: give a loader with at least one batch")

    def _batches(self) -> Iterator[Tensor]:
        seen = False
        for batch in self.loader:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise InvalidInputError(f"the data yield a {type(x).__name__}: yield tensors, or (tensor, …)")
            if x.dim() < 2:
                raise InvalidInputError(f"the data yield tensors of shape {tuple(x.shape)}: yield batches of inputs")
            seen = True
            yield x
        if not seen:
            raise InvalidInputError(
                "the data yielded no inputs: give a loader with at least one batch that can be read more than once "
                "(a list or a DataLoader), or Data(loader, sequential=False)"
            )


@dataclass(frozen=True)
class Drawn(Data):
    """Inputs that a prior has drawn, as (args, kwargs): measured on like data, and none.

    Attributes:
        source: where they come from, in words.
        forced: BatchNorms are to use the statistics of these inputs and not their own, as where the inputs agree with
            them only nearly.
        given: they come from the user.
    """

    source: str = "inputs drawn"
    forced: bool = False
    given: bool = False

    @property
    def data_used(self) -> bool:
        """Whether they are the user's all the same, as a text file is."""
        return self.given

    @property
    def said(self) -> str:
        """Where the inputs come from, in words."""
        return self.source

    def calls(self) -> Iterator[Arguments]:
        """The loader's entries, which are (args, kwargs) already."""
        yield from self.loader


def _in_place_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model with other tensors; the model itself is not touched."""
    state = model.state_dict()
    changed = {name: tensor for name, tensor in tensors.items() if name not in state or tensor is not state[name]}
    small = spared_copy(model, changed)
    install(small, changed)
    return small.eval()


def _hidden(model: nn.Module, sites: Iterable[Site], x: Tensor) -> dict[str, Tensor]:
    """What the first reader of every site reads, (N, n) each."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = args[0].flatten(0, -2)

        return hook

    hooks = [
        model.get_submodule(site.readers[0].weight.tensor.rpartition(".")[0]).register_forward_pre_hook(
            watch(site.name)
        )
        for site in sites
    ]
    try:
        with torch.no_grad():
            model(x)
    except (RuntimeError, IndexError) as error:
        raise InvalidInputError(
            f"the data do not fit the model ({str(error).splitlines()[0]}): check the loader"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found

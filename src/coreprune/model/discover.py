"""What can shrink in a model: a stack is followed layer by layer, any other network by its captured graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from coreprune.errors import UnsupportedModelError
from coreprune.garbage import searched_less
from coreprune.model import stack
from coreprune.model.network import discover_network, plain_module
from coreprune.model.site import Inspection
from coreprune.model.untouched import sparing

__all__ = ["discover"]


@sparing
@searched_less()
def discover(model: nn.Module, example_inputs: Any = None, capture: str = "auto") -> Inspection:
    """Find every site of a model.

    A stack of Linear layers and known activations needs no example and gets closed forms all the way. Anything else
    is captured, for which one batch of inputs is needed.

    Args:
        model: not changed.
        example_inputs: one batch as the model takes it: a tensor, a tuple of arguments, or a dict of keyword arguments.
        capture: "auto", "export" or "blocks": see `coreprune.model.network.discover_network`; the last two capture
            stacks too.

    Raises:
        InvalidInputError: not a module, or inputs that do not fit.
        UnsupportedModelError: it can be neither followed nor captured, with the reason.
    """
    plain_module(model)
    refusal: UnsupportedModelError | None = None
    found: Inspection | None = None
    if capture == "auto" and (example_inputs is None or isinstance(example_inputs, Tensor)):
        try:
            found = stack.discover(model, example_inputs)
        except UnsupportedModelError as error:
            refusal = error
    if found is not None and (example_inputs is None or _understood(found)):
        return found
    if example_inputs is None:
        raise UnsupportedModelError(
            f"{refusal or 'the network has to be captured'}; to have any other network captured, pass example_inputs: "
            "one batch as the model takes it"
        )
    return discover_network(model, example_inputs, capture)


def _understood(found: Inspection) -> bool:
    """Whether every layer of a stack was followed, and only the last stays whole."""
    return None not in found.chain and len(found.sites) == len(found.chain)

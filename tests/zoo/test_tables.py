"""Every network of the tables builds, runs, repeats itself, and is captured by torch.export with the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoo import families, handmade, pytorch_nets

# an LSTM keeps its weights in a list as well, which export puts back and mentions
pytestmark = pytest.mark.filterwarnings(r"ignore:The tensor attributes self\.lstm\._flat_weights:UserWarning")

NETS = (*families.TABLE, *handmade.TABLE, *pytorch_nets.TABLE)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def same(one: Any, other: Any, *, tolerance: float = 0.0) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return bool(pairs) and all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_builds_runs_repeats_and_exports(net):
    if net in families.TABLE or net.name == "model-output":
        pytest.importorskip("transformers")
    model, given = net.make(), net.inputs()
    constant = [name for name, p in model.named_parameters() if p.numel() > 1 and p.unique().numel() == 1]
    assert not constant, "zeros or ones would make every comparison pass"
    args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
    with torch.no_grad():
        first = model(*args, **kwargs)
        program = torch.export.export(model, args, kwargs, strict=False)
        assert not model.training
        assert all(t.isfinite().all() for t in tensors(first))
        assert same(first, model(*args, **kwargs))
        assert same(first, net.make()(*args, **kwargs)), "make() is not deterministic"
        assert same(first, program.module()(*args, **kwargs), tolerance=1e-5)


def test_names_are_unique():
    names = [net.name for net in NETS]
    assert len(names) == len(set(names))

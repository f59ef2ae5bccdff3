"""Our rules pass the check that is shipped on every row of the table, and rules that forget something do not."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from operators import EQUAL, REFUSED, Net, cnn, mlp, normal
from torch import nn

from coreprune.errors import InvalidInputError
from coreprune.model.axes import Value
from coreprune.model.discover import discover
from coreprune.model.rules import RULES
from coreprune.model.walk import shape_of
from coreprune.testing import ConformanceError, check_rule
from coreprune.testing.operators import _distance, operators_of

#: rows of which `inspect` says nothing, as no map makes units in them
SILENT = {"einsum of three"}


def driven(row):
    """The module of a row, its input, and the rules that it uses."""
    model = Net(row)
    x = row.x if isinstance(row.x, torch.Tensor) else normal(*row.x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, x, sorted(operators_of(discover(model, x, "export")) & set(RULES))


@pytest.mark.parametrize("name", EQUAL)
def test_ours_pass_where_units_can_go(name):
    row = EQUAL[name]
    model, x, names = driven(row)
    found = check_rule(names, model, x, seeds=(0,))
    sites = ", ".join(f"{site} ({n} units)" for site, n in row.units.items())
    assert found.checked[:2] == (f"found {sites}", "cut alone, equal to the dense module with units replaced")


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in SILENT])
def test_ours_pass_where_units_must_stay(name):
    model, x, names = driven(REFUSED[name][0])
    found = check_rule(names, model, x)
    assert found.checked == ("refuses with a reason",)
    assert found.refused


# ---------------------------------------------------------------- rules that are wrong


def elementwise(walk, node, args, kwargs):
    return walk.elementwise(shape_of(node), args)


def forgets(walk, node, args, kwargs):
    """Labels that come out are none."""
    return Value(shape_of(node))


def raises(walk, node, args, kwargs):
    raise KeyError("dim")


def hangs(walk, node, args, kwargs):
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.01)
    return elementwise(walk, node, args, kwargs)


def freezes(walk, node, args, kwargs):
    walk.freeze(args, "is not followed")
    return Value(shape_of(node))


@pytest.fixture
def instead(monkeypatch):
    def put(name, rule):
        monkeypatch.setitem(RULES, name, rule)

    return put


WRONG = {
    "softmax over units as if elementwise": ("aten.softmax", elementwise, mlp(lambda p, h: h.softmax(-1)), "off by|fails"),
    "sums over units as if elementwise": ("aten.cumsum", elementwise, mlp(lambda p, h: h.cumsum(1)), "off by|fails"),
    "flipped units as if elementwise": ("aten.flip", elementwise, mlp(lambda p, h: h.flip(1)), "off by|fails"),
    "a layer norm as if elementwise": (
        "aten.layer_norm", lambda walk, node, args, kwargs: walk.elementwise(shape_of(node), args[:1]),
        mlp(lambda p, h: torch.nn.functional.layer_norm(h, h.shape[1:])), "off by|fails"),
    "parameters of a norm forgotten": (
        "aten.batch_norm", lambda walk, node, args, kwargs: args[0],
        cnn(lambda p, h: torch.nn.functional.batch_norm(h, p.mean, p.var, p.g, p.be), g=(6,), be=(6,), mean=(6,), var=(6,)),
        "fails"),
    "an exception": ("aten.cumsum", raises, mlp(lambda p, h: h.cumsum(1)), "raised KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_caught(name, instead):
    operator, rule, row, message = WRONG[name]
    instead(operator, rule)
    with pytest.raises(ConformanceError, match=message) as caught:
        check_rule(operator, Net(row), normal(*row.x))
    assert str(caught.value).startswith(f"rule {operator}: ")


def test_a_rule_that_does_not_end_is_caught(instead):
    instead("aten.cumsum", hangs)
    row = mlp(lambda p, h: h.cumsum(1))
    with pytest.raises(ConformanceError, match=r"did not end in 0\.5 s"):
        check_rule("aten.cumsum", Net(row), normal(*row.x), seconds=0.5)


def test_a_rule_that_changes_the_module_is_caught(instead):
    row = mlp(lambda p, h: h.cumsum(1))
    seen = []

    def spoils(walk, node, args, kwargs):
        seen[0].a.data.zero_()
        return freezes(walk, node, args, kwargs)

    instead("aten.cumsum", spoils)

    class Spy(Net):
        def double(self):
            seen.append(self)
            return super().double()

    with pytest.raises(ConformanceError, match="changed the module"):
        check_rule("aten.cumsum", Spy(row), normal(*row.x))


def test_a_rule_that_refuses_is_told_from_one_that_cuts(instead):
    instead("aten.relu", freezes)
    row = mlp(lambda p, h: h.relu())
    found = check_rule("aten.relu", Net(row), normal(*row.x))
    assert found.checked == ("refuses with a reason",)
    assert any("is not followed" in reason for reason in found.refused)
    assert "stays whole: " in str(found)


def test_an_operator_that_has_no_rule_or_is_not_used_is_said():
    row = mlp(lambda p, h: h.relu())
    with pytest.raises(ConformanceError, match=r"no rule for aten\.nothing"):
        check_rule("aten.nothing", Net(row), normal(*row.x))
    with pytest.raises(ConformanceError, match=r"no aten\.glu, only aten\.linear, aten\.relu"):
        check_rule("aten.glu", Net(row), normal(*row.x))


def test_a_module_without_maps_or_without_readers_says_nothing():
    with pytest.raises(ConformanceError, match="no map that makes units"):
        check_rule("aten.einsum", Net(REFUSED["einsum of three"][0]), normal(3, 5))
    silent = mlp(lambda p, h: 0 * h.relu())
    with pytest.raises(ConformanceError, match="no unit that was taken out matters"):
        check_rule("aten.relu", Net(silent), normal(*silent.x))


def test_outputs_that_are_no_numbers_are_no_agreement():
    one, nan = torch.ones(2), torch.tensor([1.0, torch.nan])
    assert _distance([one, one], [one, one]) == 0
    assert _distance([one, one], [one, nan]) == _distance([one, nan], [one, nan]) == float("inf")
    assert _distance([one], [one[:1]]) == float("inf")


def test_an_example_that_does_not_fit_is_the_users_to_mend():
    with pytest.raises(InvalidInputError, match="do not fit"):
        check_rule("aten.linear", nn.Linear(3, 2), torch.randn(2, 4))


def test_the_module_is_left_alone_whatever_its_mode_and_precision():
    module = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.9), nn.GLU(), nn.Linear(3, 2)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check_rule("aten.glu", module, torch.randn(2, 3))
    assert module.training and module[0].weight.dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


#: operators that torch.export writes for no row: forms of other backends, of decompositions and of autograd, copies that
#: it leaves out, and a kernel of another library. Numbers that are drawn anew in every run cannot be compared
UNSEEN = {
    "_adaptive_avg_pool2d", "_conj", "_fused_rms_norm", "_grouped_mm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_prelu_kernel", "_reshape_copy", "_softmax", "_to_copy",
    "_unsafe_view", "acosh", "contiguous", "convolution", "copy", "copy_", "detach", "dot", "empty_like",
    "fill", "fill_", "lift_fresh", "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d",
    "mv", "native_batch_norm", "native_group_norm", "native_layer_norm", "norm", "numpy_T", "pin_memory",
    "rand_like", "randn_like", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "requires_grad_", "resolve_conj", "resolve_neg",
}  # fmt: skip


def test_the_rows_use_every_rule_that_torch_export_writes():
    used = {name for row in [*EQUAL.values(), *(row for row, _ in REFUSED.values())] for name in driven(row)[2]}
    left = {name.removeprefix("aten.") for name in set(RULES) - used}
    assert left - {"transformers.grouped_mm_fallback"} == UNSEEN

"""Capturing leaves the model as it was, says why it cannot, and falls back to blocks."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from helpers import equal_states
from torch import nn

import coreprune as cp
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.capture import arguments, capture, described, first_line, leaves_of, rebuilt
from coreprune.model.network import discover_network
from coreprune.model.untouched import evaluating

X, Y = torch.randn(3, 5), torch.randn(3, 5)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(6)

    def forward(self, x, y=None, *, scale=1.0):
        h = self.drop(self.norm(self.a(x if y is None else x + y))).relu()
        return self.b(h) * scale


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


class Branch(nn.Module):
    """Captured block by block: its head depends on values."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))
        self.head = Head()

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    "given,expected",
    [
        (X, ((X,), {})),
        ((X, Y), ((X, Y), {})),
        ([X, Y], ((X, Y), {})),
        ({"x": X, "y": Y}, ((), {"x": X, "y": Y})),
        (((X,), {"scale": 2.0}), ((X,), {"scale": 2.0})),
        (((X, Y), {}), ((X, Y), {})),
    ],
    ids=["tensor", "tuple", "list", "dict", "args and kwargs", "args and no kwargs"],
)
def test_arguments_come_in_four_forms(given, expected):
    args, kwargs = arguments(given)
    assert len(args) == len(expected[0]) and all(a is b for a, b in zip(args, expected[0], strict=True))
    assert kwargs.keys() == expected[1].keys() and all(kwargs[k] is expected[1][k] for k in kwargs)
    captured = capture(Two(), given)
    assert len(captured.inputs) >= 1 and set(captured.states.values()) >= {"a.weight", "b.bias", "norm.running_mean"}


def test_a_capture_computes_what_the_model_does():
    model = Two().eval()
    captured = capture(model, ((X, Y), {"scale": 2.0}))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    (result,) = captured.graph(*captured.feed(tensors, ((X, Y), {"scale": 2.0})))
    assert torch.allclose(result, model(X, Y, scale=2.0))


def test_names_are_those_in_the_larger_model():
    captured = capture(Two(), X, path="encoder.0")
    assert captured.path == "encoder.0" and all(name.startswith("encoder.0.") for name in captured.states.values())


def test_a_shared_tensor_goes_by_its_first_name():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    assert set(capture(model, X).states.values()) == {"0.weight", "0.bias", "2.bias"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model,x", [(Two(), X), (Branch(), X)], ids=["captured", "refused"])
def test_nothing_of_the_model_changes(model, x, training):
    model.train(training)
    next(model.children()).eval()
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()], dict(vars(model))
    objects = [id(p) for p in model.parameters()]
    for how in ("export", "blocks"):
        try:
            discover_network(model, x, how)
        except UnsupportedModelError:
            assert isinstance(model, Branch) and how == "export"
    assert all(torch.equal(before[0][k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == before[1] and objects == [id(p) for p in model.parameters()]
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())
    assert list(model._forward_pre_hooks) == [handle.id] and vars(model).keys() == before[2].keys()
    assert not any(m._forward_pre_hooks for m in model.modules() if m is not model)
    handle.remove()
    next(model.parameters()).requires_grad_(True)


def test_modes_come_back_after_an_error():
    model = Two().train()
    model.drop.eval()

    def within():
        with evaluating(model):
            assert not any(m.training for m in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        within()
    assert [name for name, m in model.named_modules() if not m.training] == ["drop"]


def test_control_flow_that_depends_on_values_is_refused_with_what_to_do(capfd):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return x * self.weight if x.sum() > 0 else x

    said = r" cannot be captured by torch.export \(.+\)"
    for model, how, advice in (
        (Head(), "export", ": cut it block by block with capture='blocks', or rewrite what depends on values"),
        (Bare(), "auto", ", and none of its blocks can be: rewrite what depends on values"),  # blocks were tried
    ):
        with pytest.raises(UnsupportedModelError, match=type(model).__name__ + said + advice):
            discover_network(model, torch.randn(3, 4), how)
    found = discover_network(Head(), torch.randn(3, 4))
    assert not found.sites and not any("capture=" in refusal.reason for refusal in found.refused)
    with pytest.raises(UnsupportedModelError, match=f"{said}$"):
        capture(Head(), torch.randn(3, 4))
    assert capfd.readouterr() == ("", "")  # the exporter would print its graph


@pytest.mark.parametrize("bad", [torch.randn(3, 4), (X, X, X), {"z": X}], ids=["shape", "number", "name"])
@pytest.mark.parametrize("how", ["auto", "export", "blocks"])
def test_inputs_that_do_not_fit_are_told_from_code_that_cannot_be_captured(bad, how):
    with pytest.raises(InvalidInputError, match=r"Two.*pass one batch as the model takes it"):
        discover_network(Two(), bad, how)


def test_the_shapes_that_were_given_are_said():
    with pytest.raises(InvalidInputError, match=r"\[\(3, 4\), 'float'\] do not fit Two"):
        capture(Two(), ((torch.randn(3, 4),), {"scale": 1.5}))


def test_a_word_that_is_no_way_to_capture():
    with pytest.raises(InvalidInputError, match="'auto', 'export' or 'blocks'"):
        discover_network(Two(), X, "torchscript")


def test_an_error_without_words_has_its_name():
    assert first_line(ValueError()) == "ValueError" and first_line(ValueError("\n\n two \nthree")) == "two"


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("how", ["auto", "blocks"])
def test_blocks_are_cut_where_the_head_cannot_be_captured(how):
    torch.manual_seed(0)
    model = Branch().eval()
    found = discover_network(model, X, how)
    assert [(s.name, s.units) for s in found.sites] == [("body.0", 8), ("body.2", 7)]
    assert [captured.path for captured in found.graphs] == ["body", "head.fc"]
    told = {r.name: r.reason for r in found.refused}
    assert told["body.4"] == "leaves the block body"
    if how == "auto":
        assert "cannot be captured by torch.export" in told["Branch"]
    before = copy.deepcopy(model)
    small = cp.prune(model, X, units={"body.0": 4, "body.2": 5}, capture=how)
    assert equal_states(model, before) and small.model(X).shape == (3, 2)
    assert [m.out_features for m in small.model.body if isinstance(m, nn.Linear)] == [4, 5, 4]


def test_cut_blocks_are_the_dense_network_without_those_units():
    torch.manual_seed(0)
    model = Branch().eval()
    small = cp.prune(model, X, units={"body.0": 4, "body.2": 5}, capture="blocks", method="magnitude")
    with torch.no_grad():
        for cut, reader in zip(small.plan.cuts, (model.body[2], model.body[4]), strict=True):
            gone = [j for j in range(cut.site.units) if j not in cut.kept]
            reader.weight[:, gone] = 0
    x = torch.randn(9, 5)
    assert torch.allclose(small.model(x), model(x), atol=1e-6)


def test_the_head_itself_is_refused_with_its_reason():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.w = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 4)
            self.head = Odd()

        def forward(self, x):
            return self.head(self.w(self.body(x)))

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return x * self.weight if x.sum() > 0 else x

    found = discover_network(Whole().eval(), X, "blocks")
    assert [s.name for s in found.sites] == ["body.0"]
    told = {r.name: r.reason for r in found.refused}
    assert told["head"].startswith("cannot be captured (Odd cannot be captured by torch.export")
    assert told["w"] == "leaves the block w"


def test_a_block_that_is_called_twice_or_never_or_shares_its_parameters_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never, self.head = nn.Linear(5, 5), nn.Linear(5, 5), Branch()
            self.one, self.other = nn.Linear(5, 5), nn.Linear(5, 5)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.head(self.one(self.twice(self.twice(x))) + self.other(x))

    found = discover_network(Net().eval(), X, "blocks")
    told = {r.name: r.reason for r in found.refused}
    assert told["twice"] == "is called more than once"
    assert told["never"] == told["one"] == told["other"] == "is never called, or shares its parameters"
    assert [s.name for s in found.sites] == ["head.body.0", "head.body.2"]


def test_a_network_no_part_of_which_can_be_captured_is_refused():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5))

        def forward(self, x):
            return x * self.weight if x.sum() > 0 else x

    with pytest.raises(UnsupportedModelError, match="Alone cannot be captured"):
        discover_network(Alone(), X)


# ---------------------------------------------------------------- without weights; inputs as data


def test_a_model_without_weights_can_be_inspected():
    with torch.device("meta"):
        model, x = Two(), torch.empty(3, 5)
    found = cp.inspect(model, (x,))
    assert found.sites == cp.inspect(Two(), (X,)).sites and found.sites[0].units == 6
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(InvalidInputError, match="meta device"):
        cp.plan(model, (x,), units={"a": 3})


INPUTS = [
    X,
    (X, Y),
    {"x": X, "ids": torch.tensor([[1, 2], [3, 0]]), "mask": torch.tensor([True, False])},
    ((X,), {"scale": 2.0, "deep": [1, "two", None, True], "more": {"y": Y.bfloat16()}}),
    (torch.zeros((), dtype=torch.int32), torch.zeros(2, 0)),
]


@pytest.mark.parametrize("given", INPUTS, ids=range(len(INPUTS)))
def test_inputs_that_were_written_down_come_back_in_shape_and_type(given):
    import json

    from torch.utils import _pytree as pytree

    data = described(given)
    again = rebuilt(json.loads(json.dumps(data)))
    ours, theirs = pytree.tree_leaves(given), pytree.tree_leaves(again)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert torch.equal(b, torch.zeros_like(a) if a.is_floating_point() else a)
        else:
            assert a == b
    assert described(again) == data
    assert arguments(again)[1].keys() == arguments(given)[1].keys() and len(arguments(again)[0]) == len(
        arguments(given)[0]
    )


def test_large_index_tensors_and_those_without_values_are_shapes_only():
    assert "values" not in described(torch.zeros(2**16 + 1, dtype=torch.long))
    assert "values" not in described(torch.zeros(3, dtype=torch.long, device="meta"))
    assert rebuilt(described(torch.zeros(3, dtype=torch.long, device="meta"))).tolist() == [0, 0, 0]
    assert described(object()) == {"value": None}


@pytest.mark.parametrize(
    "data", [None, {}, {"tensor": [2], "dtype": "float99"}, {"tensor": "two", "dtype": "float32"}, {"tuple": 3},
             {"tensor": [2], "dtype": "int64", "values": [1, 2, 3]}, {"dict": [1]}], ids=str
)  # fmt: skip
def test_damaged_inputs_are_told(data):
    with pytest.raises(InvalidInputError, match=r"are damaged .*: pass example_inputs"):
        rebuilt(data)


def test_decoders_are_captured_without_their_cache():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **sizes)).eval()
    ids = torch.zeros(2, 6, dtype=torch.long)
    found = discover_network(model, ids)
    assert [graph.path for graph in found.graphs] == [""]
    assert found.graphs[0].arguments[1] == {"use_cache": False}
    asked = discover_network(model, {"input_ids": ids, "use_cache": False})
    assert [site.name for site in found.sites] == [site.name for site in asked.sites]


@dataclasses.dataclass
class Told:
    """Outputs of a kind that PyTorch was not told of."""

    scores: torch.Tensor
    seen: list


class Telling(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(96, 5)

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return Told(self.c(h.flatten(1)), [h])


def test_outputs_in_a_dataclass_are_captured_cut_and_measured():
    net, x = Telling().eval(), torch.randn(2, 1, 8, 8)
    small = cp.prune(net, x, units={"a": 5}, prior="noise")
    assert isinstance(small.model(x), Told)
    assert cp.verify(net, small, inputs=torch.randn(120, 1, 8, 8)).samples == 120
    assert cp.verify(net, small).end_measured > 0


def test_leaves_of_dataclasses_are_found_however_deep():
    @dataclasses.dataclass
    class Other:
        value: object

    assert leaves_of([Other((1, Other({"a": 2}))), None, 3]) == [1, 2, 3]

"""What is found in a stack, what is refused, and that the reason is told."""

from __future__ import annotations

import pytest
import torch
from helpers import CASES, lenet_like
from torch import nn
from torch.nn import functional as F

from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.site import Location, Reader, Site, parameters_after
from coreprune.model.stack import discover
from coreprune.model.text import inspection_text


class Own(nn.Module):
    """A stack as people write it."""

    def __init__(self, function=F.relu):
        super().__init__()
        self.fc1, self.act, self.drop = nn.Linear(8, 6), nn.GELU(), nn.Dropout(0.3)
        self.fc2, self.fc3, self.function = nn.Linear(6, 5), nn.Linear(5, 2), function

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = self.drop(self.act(self.fc1(x)))
        return self.fc3(F.dropout(self.function(self.fc2(x)), 0.1, self.training))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, y):
        return self.b(torch.relu(self.a(x + y)))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


class NoWord(nn.Module):
    def forward(self, x):
        raise ValueError


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.rnn, self.b = nn.Linear(4, 4), nn.LSTM(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.rnn(torch.relu(self.a(x)))[0])


def names(model, example=None):
    return [site.name for site in discover(model, example).sites]


def test_sites_of_a_plain_stack():
    found = discover(lenet_like())
    first, second = found.sites
    assert (first.name, first.units, first.activation) == ("0", 16, "relu")
    assert (second.name, second.units) == ("2", 12)
    assert (first.incoming.tensor, first.incoming.axis) == ("0.weight", 0)
    assert (first.bias.tensor, first.bias.axis) == ("0.bias", 0)
    assert [(r.weight.tensor, r.weight.axis, r.bias) for r in first.readers] == [("2.weight", 1, "2.bias")]
    assert found.features == 6
    assert found.shapes == {name: tuple(t.shape) for name, t in lenet_like().state_dict().items()}


def test_what_is_not_looked_at_without_an_example_is_told():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU())
    found = discover(nn.Sequential(*net, nn.Linear(4, 2)))
    assert [site.name for site in found.sites] == ["4"]
    told = {refusal.name: refusal.reason for refusal in found.refused}
    assert "example_inputs" in told["0"]
    assert set(told) == {"0", "6"}


def test_what_is_found_prints_as_a_table_and_not_as_tensors():
    text = repr(discover(lenet_like()))
    assert text == str(discover(lenet_like())) == inspection_text(discover(lenet_like()))
    assert max(map(len, text.splitlines())) <= 80


def test_the_last_layer_is_refused_as_the_output():
    (refusal,) = discover(lenet_like()).refused
    assert refusal.name == "4"
    assert "output" in refusal.reason


def test_nested_sequentials():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Tanh())), nn.Identity(), nn.Sequential(nn.Linear(8, 2))
    )
    (site,) = discover(model).sites
    assert (site.name, site.activation, site.readers[0].weight.tensor) == ("0.0", "tanh", "2.0.weight")


def test_flatten_dropout_and_identity_are_passed():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 5), nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 2)
    )
    assert names(model, torch.zeros(1, 2, 4)) == ["1"]


def test_own_module_with_modules_and_functions():
    found = discover(Own(), torch.zeros(2, 2, 4))
    assert [(s.name, s.activation) for s in found.sites] == [("fc1", "gelu"), ("fc2", "relu")]


def test_the_usual_way_to_flatten():
    class View(Own):
        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x.view(x.size(0), -1))))

    assert names(View(), torch.zeros(3, 2, 4)) == ["fc1"]


MODULES = [
    (nn.ReLU(), "relu", {}),
    (nn.LeakyReLU(0.2), "leaky_relu", {"slope": 0.2}),
    (nn.PReLU(init=0.3), "leaky_relu", {"slope": pytest.approx(0.3)}),
    (nn.ELU(0.5), "elu", {"alpha": 0.5}),
    (nn.SELU(), "selu", {}),
    (nn.Softplus(beta=3), "softplus", {"beta": 3.0}),
    (nn.Hardtanh(-2.0, 3.0), "hardtanh", {"low": -2.0, "high": 3.0}),
    (nn.ReLU6(), "relu6", {}),
    (nn.Sigmoid(), "sigmoid", {}),
    (nn.Tanh(), "tanh", {}),
    (nn.Hardsigmoid(), "hardsigmoid", {}),
    (nn.Hardswish(), "hardswish", {}),
    (nn.GELU(), "gelu", {}),
    (nn.GELU(approximate="tanh"), "gelu_tanh", {}),
    (nn.SiLU(), "silu", {}),
    (nn.Mish(), "mish", {}),
    (nn.Identity(), "identity", {}),
]


@pytest.mark.parametrize(("module", "name", "parameters"), MODULES, ids=lambda v: str(v)[:40])
def test_activation_modules(module, name, parameters):
    (site,) = discover(nn.Sequential(nn.Linear(4, 3), module, nn.Linear(3, 2))).sites
    assert site.activation == name
    assert {k: v for k, v in site.parameters if k in parameters} == parameters
    z = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(site.phi(z), module(z).detach())


FUNCTIONS = [
    F.relu, torch.relu, torch.tanh, torch.sigmoid, F.gelu, F.silu, F.mish, F.selu, F.relu6, F.hardswish, F.hardsigmoid,
    F.leaky_relu, F.elu, F.softplus, F.hardtanh,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.leaky_relu(x, 0.2), lambda x: F.elu(x, alpha=0.5),
    lambda x: F.softplus(x, beta=3), lambda x: F.hardtanh(x, -2.0, 3.0), lambda x: F.hardtanh(x, max_val=2.0),
    lambda x: x.relu(), lambda x: x.tanh(), lambda x: x.sigmoid(), lambda x: F.relu(x, inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_activation_functions(function):
    site = discover(Own(function)).sites[1]
    z = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(site.phi(z), function(z.clone()))


def test_softplus_with_another_threshold_is_refused_or_followed():
    module = nn.Softplus(threshold=0.5)  # jumps by 0.47 where it turns linear
    z = torch.linspace(-6, 6, 101)
    for site in discover(nn.Sequential(nn.Linear(4, 3), module, nn.Linear(3, 2))).sites:
        torch.testing.assert_close(site.phi(z), module(z))


def between(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *modules, nn.Linear(6, 2))


REFUSED = [
    (between(nn.Softmax(-1)), "Softmax"),
    (between(nn.LayerNorm(6)), "LayerNorm"),
    (between(nn.BatchNorm1d(6), nn.ReLU()), "BatchNorm"),
    (between(nn.CELU()), "CELU"),
    (between(nn.PReLU(6)), "PReLU"),
    (between(nn.ReLU(), nn.Tanh()), "relu, tanh"),
    (Recurrent(), "rnn"),
    (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 1), nn.Linear(6, 2)), "Unfl"),
]


@pytest.mark.parametrize(("model", "word"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_with_a_reason(model, word):
    found = discover(model)
    assert found.sites == ()
    assert word in found.refused[0].reason


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    found = discover(model)
    assert found.sites == ()
    assert "more than once" in found.refused[0].reason


def test_tied_biases_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].bias = model[0].bias
    assert "0" not in names(model)


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 2))
    assert discover(model).sites == ()


def test_parametrised_layers_are_refused():
    model = between(nn.ReLU())
    nn.utils.parametrizations.weight_norm(model[0])
    assert names(model) == []


def test_reshaped_units_are_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    assert names(model, torch.zeros(5, 3, 4)) == []


def test_units_that_flatten_with_another_axis_are_refused():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(4, 6), nn.ReLU(), nn.Flatten(1), nn.Linear(18, 2))
    x = torch.zeros(5, 3, 2, 2)
    assert model(x).shape == (5, 2)
    assert names(model, x) == []


def test_units_viewed_as_others_are_refused():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).view(-1, 4))

    assert names(Folded(), torch.zeros(3, 4)) == []


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Skip(), "not a stack"),
        (TwoInputs(), "2 inputs"),
        (Branch(), "cannot be traced"),
        (NoWord(), "cannot be traced"),
        (nn.LSTM(4, 4), "LSTM"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), "no Linear"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no Linear"),
        (nn.Sequential(), "Sequential"),
        (nn.ModuleList([nn.Linear(2, 2)]), "ModuleList"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_is_no_stack_is_refused(model, word):
    with pytest.raises(UnsupportedModelError, match=word):
        discover(model)


def test_one_linear_has_no_site():
    found = discover(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    assert found.sites == ()
    assert "output" in found.refused[0].reason


@pytest.mark.parametrize("thing", ["text", None, {"0.weight": torch.ones(1)}, nn.Linear], ids=str)
def test_not_a_module(thing):
    with pytest.raises(InvalidInputError, match=type(thing).__name__):
        discover(thing)


@pytest.mark.parametrize("example", [torch.zeros(1, 5), torch.zeros(2, 3, 7), torch.zeros(()), [1, 2], "x"], ids=str)
def test_wrong_example_inputs_are_refused_with_what_is_expected(example):
    with pytest.raises(InvalidInputError, match="6"):
        discover(lenet_like(), example)


def test_integer_example_inputs_are_refused():
    with pytest.raises(InvalidInputError):
        discover(lenet_like(), torch.zeros(1, 6, dtype=torch.int64))


def test_looking_changes_nothing():
    """Not even running statistics or the random state, with the example run through a network in training mode."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)
    ).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    discover(model, torch.ones(5, 4))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_without_bias():
    (site,) = discover(nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))).sites
    assert site.bias.tensor == "0.bias"
    assert site.readers[0].bias == "2.bias"


def test_meta_tensors_are_enough():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert names(model) == ["0"]


def test_governs_counts_what_goes_with_the_units():
    found = discover(lenet_like())
    assert found.governs(found.sites[0]) == 16 * 6 + 16 + 16 * 12
    assert found.governs(found.sites[1]) == 12 * 16 + 12 + 12 * 4


def test_parameters_after_counts_a_network_that_is_built():
    found = discover(lenet_like())
    small = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4))
    count = sum(p.numel() for p in small.parameters())
    assert parameters_after(found.shapes, found.sites, {"0": 5, "2": 3}) == count


def test_a_site_survives_json():
    for case in CASES:
        site = discover(lenet_like()).sites[0]
        data = site.to_json() | {"activation": case.name, "parameters": dict(case.parameters)}
        again = type(site).from_json(data)
        assert again.to_json() == data
        assert again.phi == case.phi


def test_parameters_after_counts_every_entry_of_a_unit():
    """Four channels of a convolution, each flattened to 6 columns of the reader, of which the first two are others'."""
    conv, reader = Location("c.weight", 0), Reader(Location("f.weight", 1, start=2, span=6), "f.bias")
    site = Site("c", "linear", 4, "relu", (), conv, Location("c.bias", 0), (reader,))
    shapes = {"c.weight": (4, 3, 2, 2), "c.bias": (4,), "f.weight": (5, 26), "f.bias": (5,)}
    assert parameters_after(shapes, [site], {"c": 3}) == 3 * 12 + 3 + 5 * 20 + 5


def test_what_begins_with_another_layer_is_looked_at_no_further_where_inputs_are_given():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            h = self.first(x).mean((2, 3))
            noted.append(1)
            return self.last(h)

    model, noted = Late(), []
    with pytest.raises(UnsupportedModelError, match="begins with a Conv2d"):
        discover(model, torch.zeros(1, 3, 5, 5))
    assert not noted
    assert not discover(model).sites and noted


def test_layers_behind_the_last_linear_one_do_no_harm():
    tail = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3)).eval()
    for example in (None, torch.zeros(2, 4)):
        assert [site.name for site in discover(tail, example).sites] == ["0"]

"""Sites that turn together: where a window ends, what comes into it, and what is told of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.engine import descent, turning
from coreprune.engine.kept import works
from coreprune.engine.runner import Steps, part_between
from coreprune.engine.together import put, windows
from coreprune.engine.turning import TOGETHER, turned
from coreprune.model.discover import discover
from coreprune.model.tensors import tensors_of

TOKENS, LENGTH, WIDTH, UNITS, LAYERS = 40, 12, 16, 32, 7


class Block(nn.Module):
    """Attention, whose views hold the batch of the example, and a gated layer; places are laid out anew in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, UNITS, bias=False) for _ in range(2))
        self.down = nn.Linear(UNITS, WIDTH, bias=False)

    def attended(self, x, places):
        rows, length, _ = x.shape
        y = nn.functional.layer_norm(x, (WIDTH,)) + places.unsqueeze(0)
        q, k, v = (one(y).view(rows, length, 2, -1).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.o(y.transpose(1, 2).reshape(rows, length, -1))

    def forward(self, x, places):
        x = self.attended(x, places)
        y = nn.functional.layer_norm(x, (WIDTH,))
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Reader(nn.Module):
    """Reads tokens, in blocks with a residual stream around them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, TOKENS)

    def streams(self, ids):
        x, places, found = self.table(ids), self.places(torch.arange(LENGTH)), []
        for block in self.blocks:
            x = block(x, places)
            found.append(x)
        return found

    def ends(self, ids):
        """The stream behind every block, behind the last one as the head gets it."""
        *streams, last = self.streams(ids)
        return [*streams, nn.functional.layer_norm(last, (WIDTH,))]

    def forward(self, ids):
        return self.head(self.ends(ids)[-1])


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    model = Reader().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.down.weight.mul_(3)
    return model


def loader(seed=1, count=30):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(TOKENS, (6, LENGTH), generator=generator) for _ in range(count)]


def cut(model, method, x, **more):
    return cp.prune(model, x[0], remove={"*": 0.4}, kinds=["gated"], method=method, data=x, **more)


@pytest.fixture(scope="module")
def prepared(reader):
    """What was discovered, the tensors, the kernel's cuts, and the windows."""
    x = loader()
    found, tensors = discover(reader, x[0], "export"), tensors_of(reader)
    cuts = cut(reader, "kernel", x).plan.cuts
    return found, tensors, cuts, windows(found.graphs[0], works(found, tensors, cuts), TOGETHER)


def test_five_sites_make_a_window_which_ends_in_the_stream(reader, prepared):
    found, tensors, _, made = prepared
    assert [len(one.works) for one in made] == [5, 2] and all(one.part is not None for one in made)
    ids = loader()[3]
    names = [tuple(node.name for node in one.part.last) for one in made]
    values = Steps(found.graphs[0], tensors, [((ids,), {})], names)
    with torch.no_grad():
        streams = reader.ends(ids)
    found_there = [(own, values.values(own)[0]) for own in names]
    given = [one[name] for own, one in found_there for name in own]
    for value, stream in zip(given, streams, strict=True):
        assert torch.allclose(value, stream, atol=1e-5)


def test_the_error_falls_on_inputs_that_nobody_descended_on(reader, monkeypatch):
    monkeypatch.setattr(turning, "EPOCHS", 12)  # inputs are few here
    monkeypatch.setattr(descent, "RATE", 2e-3)
    fresh = torch.cat(loader(seed=9))

    def error(method):
        with torch.no_grad():
            return float((cut(reader, method, loader()).model(fresh) - reader(fresh)).square().mean())

    assert error("refined") < 0.9 * error("kernel")


@pytest.mark.parametrize("rate", [0.0, 3.0])
def test_a_window_whose_error_does_not_fall_stays_as_the_closed_form_left_it(reader, monkeypatch, rate):
    monkeypatch.setattr(descent, "RATE", rate)
    kernel, same = (cut(reader, method, loader()).model.state_dict() for method in ("kernel", "refined"))
    assert all(torch.equal(kernel[name], same[name]) for name in kernel)


def test_a_part_takes_fewer_rows_than_the_example_had(prepared):
    found, tensors, _, made = prepared
    part = made[0].part
    (values,) = Steps(found.graphs[0], tensors, [((loader()[0],), {})], [part.incoming]).values(part.incoming)
    with torch.no_grad():
        whole = part(tensors, values)
        few = part(tensors, descent.rows_of_all(values, torch.tensor([2, 3])))
    assert all(torch.allclose(z, y[2:4], atol=1e-5) for z, y in zip(few, whole, strict=True))


def test_what_the_cut_network_brings_is_what_the_smaller_one_has(reader, prepared):
    """Behind a window that was turned, the pass of dense shape has the values of the network that comes out."""
    found, tensors, cuts, made = prepared
    x = loader()
    new = turned(found, tensors, cuts, [((one,), {}) for one in x])
    small = cut(reader, "refined", x).model
    names = [made[0].part.incoming, tuple(node.name for node in made[-1].part.last)]
    steps = Steps(found.graphs[0], tensors, [((x[0],), {})], names)
    steps.values(names[0])  # as between two windows
    steps.put(put(tensors, [new]))
    (given,) = steps.values(names[1])
    with torch.no_grad():
        (as_cut, dense) = (one.ends(x[0])[-1] for one in (small, reader))
    assert torch.allclose(given[names[1][-1]], as_cut, atol=2e-2)  # products may be of bfloat16
    assert float((given[names[1][-1]] - as_cut).norm()) < 0.05 * float((as_cut - dense).norm())


def test_nothing_is_computed_before_it_is_needed(reader, prepared):
    """Places that block 4 lays out come late in the graph, and into the first window early; what is put reaches it all."""
    found, tensors, _, made = prepared
    (first, last), (x, *_) = made, loader()
    names = [first.part.incoming, last.part.incoming]
    order = [node.name for node in found.graphs[0].graph.graph.nodes]
    assert max(map(order.index, first.part.incoming)) > order.index(first.part.nodes[0].name)
    changed = {name: tensors[name] * 1.5 for name in first.works[0].own}
    early, whole = (Steps(found.graphs[0], one, [((x,), {})], names) for one in (tensors, tensors | changed))
    for steps in (early, whole):
        steps.values(names[0])
    early.put(changed)
    (given,), (expected,) = early.values(names[1]), whole.values(names[1])
    assert all(torch.equal(given[name], expected[name]) for name in names[1])


def test_what_is_told_is_the_error_of_the_streams_on_what_was_held_back(reader):
    x = loader()
    small = cut(reader, "refined", x)
    held = torch.cat(x)[9::10]
    with torch.no_grad():
        pairs = list(zip(reader.streams(held)[:5], small.model.streams(held)[:5], strict=True))
        every = [y.square().sum(-1) for y in reader.streams(torch.cat(x))[:5]]
    expected = [
        float(((y - z).square().sum(-1) / y.square().sum(-1).clamp(min=float(usual.median()))).mean())
        for (y, z), usual in zip(pairs, every, strict=True)
    ]
    told = [one.evidence["turned"] for one in small.plan.cuts]
    assert all(one["after"] < one["before"] for one in told)
    assert told[0]["after"] == pytest.approx(sum(expected) / 5, rel=0.1)  # products may be of bfloat16
    assert [one["sites"] for one in told] == [5] * 5 + [2] * 2


def test_the_same_call_gives_the_same_bits_and_leaves_the_model(reader):
    before = {name: tensor.clone() for name, tensor in reader.state_dict().items()}
    one, two = (cut(reader, "refined", loader(), seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in reader.state_dict().items())


def test_sites_that_do_not_meet_again_are_turned_alone():
    """What the second block computes on its way, from what the first one gave, is also read by the head."""

    class Past(Reader):
        def forward(self, ids):
            streams = self.streams(ids)
            return self.head(streams[-1] + self.blocks[1].attended(streams[0], self.places.weight))

    torch.manual_seed(0)
    model, x = Past().eval(), loader()
    found, tensors = discover(model, x[0], "export"), tensors_of(model)
    made = windows(found.graphs[0], works(found, tensors, cut(model, "kernel", x).plan.cuts), TOGETHER)
    assert sum(len(one.works) for one in made) == LAYERS
    ends = [node.name for node in made[0].part.last]
    own = frozenset(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("gate", "up", "down"))
    assert part_between(found.graphs[0], own | {"blocks.1.q.weight"}, ends[:1]) is None
    assert all("turned" in one.evidence for one in cut(model, "refined", x).plan.cuts)


def test_a_window_is_as_long_as_is_said(prepared):
    found, tensors, cuts, _ = prepared
    assert [len(one.works) for one in windows(found.graphs[0], works(found, tensors, cuts), 3)] == [3, 3, 1]

"""Captured graphs on tensors: what readers see, against forward passes written out and numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coreprune.engine import observe, runner
from coreprune.engine.observe import as_seen, moments, samples, spread
from coreprune.engine.probes import fits, synthesise
from coreprune.engine.runner import run
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Captured, capture
from coreprune.model.site import Tap


def tensors_of(model):
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def nodes(captured, name):
    """Nodes of one operator, in order, those of inner graphs too."""
    parts = [part for part in captured.graph.modules() if hasattr(part, "graph")]
    return [n for part in parts for n in part.graph.nodes if str(n.target).startswith(f"aten.{name}.")]


def tap_at(captured, name, which=0, units=None, block=1, share=1, axis=-1):
    node = nodes(captured, name)[which]
    operand = node.args[0]
    size = operand.meta["val"].shape[axis]
    entries = torch.arange(size).reshape(units or size, block, share)
    return Tap(0, node.name, operand.name, axis % operand.meta["val"].dim(), entries)


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


class Two(nn.Module):
    """Two readers of one hidden layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return {"b": self.b(h), "c": (self.c(h), h)}


class Flat(nn.Module):
    """Channels behind a flatten: a unit has several entries that share T."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(torch.flatten(torch.relu(self.conv(x)), 1))


class Again(nn.Module):
    """A map that is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(torch.relu(self.b(torch.relu(self.a(x)))))))


class TestRun:
    def test_it_computes_what_the_module_computes(self):
        model, x = Two(), normal(5, 3)
        out = run(capture(model, x), tensors_of(model), ((2 * x,), {}))
        expected = model(2 * x)
        assert len(out) == 3 and not out[0].requires_grad
        for got, wanted in zip(out, [expected["b"], *expected["c"]], strict=True):
            assert torch.equal(got, wanted)

    def test_the_hook_sees_units_at_the_front(self):
        model, x = Flat(), normal(2, 2, 4, 4)
        captured, seen = capture(model, x), []
        tap = tap_at(captured, "linear", units=3, share=4)
        run(captured, tensors_of(model), ((x,), {}), taps=[tap], hook=lambda t, v: seen.append(as_seen(v, t)))
        h = torch.relu(model.conv(x)).detach()  # (2, 3, 2, 2)
        assert seen[0].shape == (2, 3, 1, 4)
        assert torch.equal(seen[0], h.reshape(2, 3, 1, 4))

    def test_channels_are_seen_along_their_axis_and_in_the_order_of_the_entries(self):
        model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 1)), normal(2, 2, 4, 4)
        captured, seen = capture(model, x), []
        node = nodes(captured, "conv2d")[1]
        tap = Tap(0, node.name, node.args[0].name, 1, torch.tensor([[[2]], [[0]]]))
        run(captured, tensors_of(model), ((x,), {}), taps=[tap], hook=lambda t, v: seen.append(as_seen(v, t)))
        h = model[0](x).detach()
        expected = torch.stack([h[:, 2], h[:, 0]], -1).reshape(-1, 2, 1, 1)
        assert torch.equal(seen[0], expected)

    def test_a_replacement_is_for_its_reader_alone(self):
        model, x = Two(), normal(5, 3)
        captured = capture(model, x)
        tap = tap_at(captured, "linear", 1)
        b, c, h = run(captured, tensors_of(model), ((x,), {}), taps=[tap], hook=lambda t, v: v + 1)
        hidden = torch.relu(model.a(x))
        assert torch.allclose(b, model.b(hidden + 1)) and not torch.allclose(b, model.b(hidden))
        assert torch.equal(c, model.c(hidden)) and torch.equal(h, hidden)

    def test_two_taps_of_one_node_replace_one_after_the_other(self):
        model, x = Two(), normal(5, 3)
        captured = capture(model, x)
        taps = [tap_at(captured, "linear", 1), tap_at(captured, "linear", 1)]
        b = run(captured, tensors_of(model), ((x,), {}), taps=taps, hook=lambda t, v: v + 1)[0]
        assert torch.allclose(b, model.b(torch.relu(model.a(x)) + 2))

    def test_what_the_code_writes_into_stays(self):
        class Counts(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("seen", torch.zeros(4))

            def forward(self, x):
                self.seen[1:].add_(1)
                return x.relu_() + self.seen

        model, x = Counts(), normal(3, 4)
        captured, before = capture(model, x.clone()), x.clone()
        model.seen.zero_()
        out = run(captured, tensors_of(model), ((x,), {}))[0]
        assert torch.equal(out, before.relu() + torch.tensor([0.0, 1, 1, 1]))
        assert torch.equal(x, before) and not model.seen.any()

    def test_blocks_under_no_grad_are_looked_into(self):
        class Frozen(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x):
                with torch.enable_grad():
                    h = self.b(torch.relu(self.a(x)))
                return self.c(torch.relu(h))

        model, x = Frozen(), normal(5, 3)
        captured, seen = capture(model, x), {}
        inner = [n for n in nodes(captured, "linear") if n.graph is not captured.graph.graph]
        assert len(inner) == 2, "the exporter makes a graph of its own of the block"
        taps = [
            Tap(0, n.name, n.args[0].name, 1, torch.arange(4)[:, None, None])
            for n in (inner[1], nodes(captured, "linear")[0])
        ]

        def hook(tap, value):
            seen[tap.node] = value

        run(captured, tensors_of(model), ((x,), {}), taps=taps, hook=hook, complete=False)
        assert torch.equal(seen[inner[1].name], torch.relu(model.a(x)))
        assert len(seen) == 2

    def test_it_stops_behind_the_last_tap(self, monkeypatch):
        ran = []
        old = runner._Runner.call_function
        monkeypatch.setattr(runner._Runner, "call_function", lambda s, t, a, k: ran.append(str(t)) or old(s, t, a, k))
        model, x = Flat(), normal(2, 2, 4, 4)
        captured = capture(model, x)
        tap = tap_at(captured, "conv2d", units=2, axis=1)
        assert run(captured, tensors_of(model), ((x,), {}), taps=[tap], hook=lambda t, v: None, complete=False) == []
        assert ran == ["aten.conv2d.default"]

    def test_values_are_freed_after_their_last_use(self, monkeypatch):
        most, old = [0], runner._Runner.call_function

        def count(self, target, args, kwargs):
            most[0] = max(most[0], sum(node.op == "call_function" for node in self.env))
            return old(self, target, args, kwargs)

        monkeypatch.setattr(runner._Runner, "call_function", count)
        model, x = nn.Sequential(*[m for _ in range(9) for m in (nn.Linear(3, 3), nn.ReLU())]), normal(2, 3)
        run(capture(model, x), tensors_of(model), ((x,), {}))
        assert most == [1]

    def test_a_graph_captured_without_values_runs_where_the_tensors_are(self):
        class Positions(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 2)

            def forward(self, x):
                return self.fc(x + torch.arange(4, device=x.device)).to(x.device)

        with torch.device("meta"):
            captured = capture(Positions(), torch.zeros(3, 4))
        model, x = Positions(), normal(3, 4)
        assert torch.equal(run(captured, tensors_of(model), ((x,), {}))[0], model(x))


class TestBatchNorm:
    def made(self, seed=1):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in (model[1].weight, model[1].bias, model[1].running_mean):
                value.copy_(torch.randn(4, generator=g))
            model[1].running_var.copy_(torch.rand(4, generator=g) + 0.5)
        return model

    def output(self, model, x, batch_statistics=True):
        captured, seen = capture(model, x), []
        node = nodes(captured, "relu")[0]
        tap = Tap(0, node.name, node.args[0].name, 1, torch.arange(4)[:, None, None])
        run(
            captured,
            tensors_of(model),
            ((x,), {}),
            taps=[tap],
            hook=lambda t, v: seen.append(v),
            batch_statistics=batch_statistics,
        )
        return seen[0]

    def test_marginals_are_bias_and_weight(self):
        model = self.made()
        h = self.output(model, normal(4, 2, 9, 9, scale=3.0, shift=5.0)).double()
        assert torch.allclose(h.mean((0, 2, 3)), model[1].bias.double(), atol=1e-5)
        assert torch.allclose(h.var((0, 2, 3), correction=0).sqrt(), model[1].weight.abs().double(), rtol=3e-5)

    def test_without_it_running_statistics_are_used(self):
        model, x = self.made(), normal(4, 2, 9, 9)
        assert torch.allclose(self.output(model, x, batch_statistics=False), model[:2](x), atol=1e-6)

    def test_few_positions_keep_the_running_statistics(self):
        model = self.made()
        few, enough = normal(1, 2, 7, 7)[..., :4], normal(1, 2, 10, 6)  # 5·2 = 10 and 8·4 = 32 positions
        assert torch.allclose(self.output(model, few), model[:2](few), atol=1e-6)
        assert not torch.allclose(self.output(model, enough), model[:2](enough), atol=1e-2)

    def test_a_channel_that_was_dead_stays_dead_and_a_constant_one_stays_finite(self):
        model, x = self.made(), normal(4, 2, 9, 9)
        with torch.no_grad():
            model[1].running_var[0] = 0
            model[0].weight[1] = 0
        h = self.output(model, x)
        assert torch.allclose(h[:, 0], model[1].bias[0])
        assert torch.allclose(h[:, 1], model[:2](x)[:, 1], atol=1e-5)

    def test_the_functional_norm_without_weights_is_forced_too(self):
        class Plain(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm1d(4, affine=False)

            def forward(self, x):
                return torch.relu(self.norm(x))

        h = self.output(Plain().eval(), normal(64, 4, scale=7.0, shift=3.0)).double()
        assert torch.allclose(h.mean(0), torch.zeros(4).double(), atol=1e-5)
        assert torch.allclose(h.std(0, correction=0), torch.ones(4).double(), rtol=1e-4)


def by_hand(rows):
    values = np.concatenate([r.detach().double().numpy() for r in rows])
    return values.mean(0), np.cov(values.T, bias=True), len(values)


def agree(observed, rows, rtol=1e-10, off=0.0):
    mean, covariance, count = by_hand(rows)
    assert observed.count == count
    np.testing.assert_allclose(observed.mean.numpy(), mean, rtol=rtol, atol=off * covariance.diagonal().max() ** 0.5)
    np.testing.assert_allclose(observed.covariance.numpy(), covariance, rtol=0, atol=rtol * np.abs(covariance).max())


class TestMoments:
    def test_against_numpy_over_batches(self):
        model = Two()
        captured = capture(model, normal(5, 3))
        batches = [((normal(5, 3, seed=s, shift=s),), {}) for s in range(3)]
        readers = [(tap_at(captured, "linear", 0),), (tap_at(captured, "linear", 1),)]
        first, second = moments([captured], tensors_of(model), readers, iter(batches))
        agree(first, [a[0] for a, _ in batches])
        agree(second, [torch.relu(model.a(a[0])) for a, _ in batches])

    def test_positions_that_share_are_samples_and_blocks_are_features(self):
        model, x = Flat(), normal(6, 2, 4, 4)
        captured = capture(model, x)
        share, block = (
            tap_at(captured, "linear", units=3, share=4),
            tap_at(captured, "linear", units=3, block=2, share=2),
        )
        seen = moments([captured], tensors_of(model), [(share,), (block,)], [((x,), {})])
        h = torch.relu(model.conv(x)).flatten(1)  # (6, 12)
        agree(seen[0], [h.reshape(6, 3, 4)[:, :, s] for s in range(4)])
        agree(seen[1], [h.reshape(6, 3, 2, 2)[:, :, :, s].flatten(1) for s in range(2)])

    def test_a_map_called_twice_pools_its_samples(self):
        model, x = Again(), normal(7, 4)
        captured = capture(model, x)
        reader = (tap_at(captured, "linear", 1), tap_at(captured, "linear", 3))
        once = (tap_at(captured, "linear", 1),)
        both, one = moments([captured], tensors_of(model), [reader, once], [((x,), {})])
        first = torch.relu(model.a(x))
        second = torch.relu(model.a(torch.relu(model.b(first))))
        agree(both, [first, second])
        agree(one, [first])

    @pytest.mark.parametrize("features", [16, 17, 65])
    @pytest.mark.parametrize("mean", [0.0, 3e4])
    def test_large_means_cost_no_digits(self, features, mean):
        model = nn.Sequential(nn.Linear(features, 1))
        captured = capture(model, torch.zeros(40, features))
        batches = [((normal(40, features, seed=s, shift=mean * (s + 1)),), {}) for s in range(3)]
        seen = moments([captured], tensors_of(model), [(tap_at(captured, "linear"),)], batches)[0]
        assert seen.covariance.dtype == seen.mean.dtype == torch.float64
        wide = features > 16
        agree(seen, [a[0] for a, _ in batches], rtol=2e-7 if wide else 1e-10, off=1e-8 if wide else 0.0)

    def test_what_varies_within_batches_alone_is_exact_beside_a_large_mean(self):
        stream = observe.Moments(600)
        parts = [normal(50, 600, seed=s, scale=1e-2, shift=1e3) for s in range(3)]
        for part in parts:
            stream.add(part)
        agree(observe.Observed(*stream.moments(), stream.count), parts, rtol=1e-6)

    def test_many_rows_are_subsampled_and_say_nearly_the_same(self):
        model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)), normal(2, 3, 100, 100)
        captured = capture(model, x)
        tap = tap_at(captured, "conv2d", 1, axis=1)
        seen = moments([captured], tensors_of(model), [(tap,)], [((x,), {})])[0]
        assert seen.count == observe.SAMPLES < 20000
        _, covariance, _ = by_hand([model[0](x).movedim(1, -1).reshape(-1, 4)])
        np.testing.assert_allclose(seen.covariance.numpy(), covariance, atol=0.06 * np.abs(covariance).max())

    def test_readers_of_one_value_share_their_moments(self):
        model, x = Two(), normal(5, 3)
        captured = capture(model, x)
        readers = [(tap_at(captured, "linear", 1),), (tap_at(captured, "linear", 2),)]
        b, c = moments([captured], tensors_of(model), readers, [((x,), {})])
        assert b is c and b.count == 5

    def test_a_block_sees_its_recorded_arguments_once(self):
        model, x = Two(), normal(5, 3)
        whole, block = capture(model, x), capture(model.b, normal(6, 4), path="b")
        at = tap_at(block, "linear")
        readers = [(tap_at(whole, "linear", 1),), (Tap(1, at.node, at.operand, at.axis, at.entries),)]
        seen = moments([whole, block], tensors_of(model), readers, [((x,), {}), ((x,), {})])
        assert seen[0].count == 10
        agree(seen[1], [normal(6, 4)])

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("width", [4, 600])
    def test_what_is_not_finite_is_told(self, bad, width):
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
        x = normal(5, 3)
        captured = capture(model, x)
        x[2, 1] = bad
        with pytest.raises(InvalidInputError, match="NaN or infinite"):
            moments([captured], tensors_of(model), [(tap_at(captured, "linear", 1),)], [((x,), {})])

    def test_no_inputs_are_told(self):
        model = Two()
        captured = capture(model, normal(5, 3))
        with pytest.raises(InvalidInputError, match="at least one batch"):
            moments([captured], tensors_of(model), [(tap_at(captured, "linear", 1),)], [])


class TestSamples:
    @pytest.mark.parametrize("total,limit", [(10, 9), (1000, 77), (224 * 224, 8192), (5, 5)])
    def test_one_from_each_stretch(self, total, limit):
        at = spread(total, limit)
        stretch = torch.arange(limit) * total / limit
        assert len(at) == limit and int(at.max()) < total
        assert bool(((at >= stretch.floor()) & (at <= stretch + total / limit)).all())

    def test_every_column_of_an_image_is_met_about_as_often(self):
        columns = torch.bincount(spread(32 * 224 * 224, 8192) % 224, minlength=224)
        assert columns.min() > 0.5 * columns.float().mean() and columns.max() < 1.5 * columns.float().mean()

    def test_they_are_rows_of_the_whole(self):
        value = torch.arange(2 * 12 * 50.0).reshape(2, 12, 50)
        tap = Tap(0, "", "", 1, torch.arange(12).reshape(2, 2, 3))
        whole = {tuple(row) for row in samples(value, tap, 10**6).tolist()}
        assert len(whole) == 2 * 50 * 3
        part = samples(value, tap, 60)
        assert part.shape == (60, 4) and {tuple(row) for row in part.tolist()} <= whole
        assert torch.equal(part, samples(value, tap, 60))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.kinds, self.head = nn.Embedding(50, 4), nn.Embedding(2, 4), nn.Linear(4, 3)

    def forward(self, ids, kinds, mask, scale):
        h = self.words(ids.view(-1, 6)) + self.kinds(kinds)
        return self.head(h * mask.unsqueeze(-1)) * scale


def words():
    model = Words()
    ids, kinds = torch.zeros(2, 2, 6, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    return model, {"ids": ids, "kinds": kinds, "mask": mask, "scale": torch.ones(1)}


class TestInputs:
    def test_convolutional_networks_take_other_batches(self):
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        )
        captured = capture(model.eval(), normal(2, 2, 8, 8))
        assert fits(captured, 1) and fits(captured, 2) and fits(captured, 31)

    def test_graphs_that_hold_the_batch_do_not(self):
        class Holds(nn.Module):
            def forward(self, x):
                return x.view(x.shape[0], -1) + torch.zeros(x.shape[0], 1)

        class Repeats(nn.Module):  # runs on one entry, and answers with two
            def forward(self, x):
                return x + torch.zeros(x.shape[0], 1)

        for model in (Holds(), Repeats()):
            captured = capture(model, normal(2, 4))
            assert fits(captured, 2) and not fits(captured, 1) and not fits(captured, 3)

    def test_fitting_runs_agree_with_the_module(self):
        model = Flat()
        captured, x = capture(model, normal(2, 2, 4, 4)), normal(7, 2, 4, 4)
        assert fits(captured, 7)
        assert torch.allclose(run(captured, tensors_of(model), ((x,), {}))[0], model(x), atol=1e-6)

    def test_noise_indices_and_masks(self):
        model, inputs = words()
        captured = capture(model, inputs)
        made = list(synthesise(captured, 3, 7, mean=5.0, std=0.1))
        assert len(made) == 3
        for (args, kwargs), (_, again) in zip(made, synthesise(captured, 3, 7, mean=5.0, std=0.1), strict=True):
            assert args == () and list(kwargs) == list(inputs)
            assert all(torch.equal(kwargs[k], again[k]) for k in kwargs)
            assert torch.equal(kwargs["mask"], inputs["mask"])
            assert kwargs["kinds"].min() == 0 and kwargs["kinds"].max() == 1
            assert 4 < float(kwargs["scale"]) < 6 and float(kwargs["scale"]) != 5
            model(**kwargs)
        drawn = torch.cat([kwargs["ids"] for _, kwargs in made])
        assert drawn.max() > 30 and len(drawn.unique()) > 15 and drawn.dtype == torch.long
        assert not torch.equal(made[0][1]["ids"], made[1][1]["ids"])
        assert not torch.equal(made[0][1]["ids"], next(synthesise(captured, 1, 8))[1]["ids"])

    def test_a_tensor_that_is_given_twice_is_drawn_once(self):
        model, inputs = words()
        captured = capture(model, inputs | {"kinds": inputs["ids"]})
        _, kwargs = next(synthesise(captured, 1, 0))
        assert torch.equal(kwargs["ids"], kwargs["kinds"]) and kwargs["ids"].max() == 1
        assert torch.allclose(run(captured, tensors_of(model), ((), kwargs))[0], model(**kwargs))

    def test_floats_have_the_mean_and_deviation_asked(self):
        captured = capture(nn.Conv2d(3, 1, 1), torch.zeros(2, 3, 40, 40))
        ((x,), _) = next(synthesise(captured, 1, 0, mean=2.0, std=3.0))
        assert abs(float(x.mean()) - 2) < 0.1 and abs(float(x.std()) - 3) < 0.1
        ((y,), _) = next(synthesise(captured, 1, 0, mean=torch.tensor([0.0, 10, 20]).reshape(3, 1, 1)))
        assert torch.allclose(y.mean((0, 2, 3)), torch.tensor([0.0, 10, 20]), atol=0.1)

    def test_another_batch(self):
        model, inputs = words()
        captured = capture(model, inputs)
        _, kwargs = next(synthesise(captured, 1, 0, batch=5))
        assert kwargs["ids"].shape == kwargs["mask"].shape == (5, 6) and kwargs["scale"].shape == (1,)
        assert torch.equal(kwargs["mask"], inputs["mask"][[0, 1, 0, 1, 0]])

    def test_an_example_without_values(self):
        with torch.device("meta"):
            captured = capture(*words())
        _, kwargs = next(synthesise(captured, 1, 0))
        assert not any(value.is_meta for value in kwargs.values())
        assert kwargs["mask"].all() and kwargs["ids"].max() > 1
        words()[0](**kwargs)

    def test_half_precision_stays(self):
        captured = capture(nn.Linear(3, 2).bfloat16(), torch.zeros(2, 3, dtype=torch.bfloat16))
        assert isinstance(captured, Captured)
        assert next(synthesise(captured, 1, 0))[0][0].dtype == torch.bfloat16


class TestReadersOfOneValue:
    """Several that see other entries of one value are observed together, and are each as if they were alone."""

    def seen(self, parts, batches=2, **more):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 1))
        captured = capture(model, torch.zeros(20, 3))
        whole = tap_at(captured, "linear", 1)
        taps = [replace(whole, entries=torch.tensor(part).reshape(-1, 1, 1)) for part in parts]
        given = [((normal(20, 3, seed=s),), {}) for s in range(batches)]
        hidden = torch.cat([model[:2](args[0]) for args, _ in given])
        return moments([captured], tensors_of(model), [(tap,) for tap in taps], given, **more), hidden

    @pytest.mark.parametrize("small", [1, 16])
    def test_moments_are_those_of_their_own_entries(self, small, monkeypatch):
        monkeypatch.setattr(observe, "SMALL", small)
        parts = [[0, 1, 2], [3, 4, 5], [11, 2, 7], [3, 4, 5], [8, 9], [6, 7]]
        found, hidden = self.seen(parts)
        for part, observed in zip(parts, found, strict=True):
            agree(observed, [hidden[:, part]], rtol=1e-6 if small == 1 else 1e-10, off=1e-6 if small == 1 else 0.0)
        assert found[1] is found[3]  # which see the same

    def test_one_pass_looks_at_each_value_once(self, monkeypatch):
        looked = []
        old = observe.samples
        monkeypatch.setattr(observe, "samples", lambda *a: looked.append(1) or old(*a))
        self.seen([[0, 1], [2, 3], [4, 5], [6]], batches=3)
        assert len(looked) == 2 * 3  # those of two entries, and the one of one
        looked.clear()
        monkeypatch.setattr(observe, "BESIDE", 1)
        self.seen([[0, 1], [2, 3], [4, 5], [6]], batches=3)
        assert len(looked) == 4 * 3

    def test_of_readers_that_see_the_same_the_first_one_says_what_is_typical(self):
        parts, one, other = [[0, 1, 2]] * 2, torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.1, 0.1, 1.0])
        (first, second), _ = self.seen(parts, energies=[one, other])
        assert first is second and first.typical is not None
        (alone, _), _ = self.seen(parts, energies=[one, one])
        assert torch.equal(first.typical.covariance, alone.typical.covariance)
        (last, _), _ = self.seen(parts, energies=[other, one])
        assert not torch.equal(first.typical.covariance, last.typical.covariance)

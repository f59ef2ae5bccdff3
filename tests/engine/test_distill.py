"""Distillation: the loss falls, nothing given is touched, a run that was stopped ends in the same bits."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from helpers import equal_states, lenet_like, seeded, snapshot
from torch import nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.engine import distill as engine
from coreprune.engine.distill import Agreement, agreement_of, outputs, rate_at
from coreprune.engine.supply import HELD, Noise, Pool, pooled
from coreprune.errors import CheckpointError, InvalidInputError, UnsupportedModelError
from coreprune.model.capture import rows_of
from coreprune.priors.data import Data
from coreprune.recovery import distill

QUICK = {"steps": 20, "rate": 1e-2}


@pytest.fixture(scope="module")
def dense():
    return lenet_like(1)


@pytest.fixture(scope="module")
def small(dense):
    return cp.prune(dense, units={"0": 5, "2": 4}, method="uniform")


def conv(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 3, 3)
        )
        net(torch.randn(16, 2, 6, 6))  # statistics of its own
    return net


def llama(dtype=torch.float32):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
        model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # as drawn they say hardly anything
            p.mul_(10 if p.dim() > 1 else 1)
    return model.to(dtype)


def tokens(rows=2):
    return {"input_ids": torch.randint(3, 40, (rows, 8), generator=seeded(0)), "use_cache": False}


def test_the_loss_falls_and_is_what_was_measured(dense, small):
    better = distill(small, dense, steps=200, rate=1e-2)
    facts = better.plan.recipe["distilled"]
    assert facts["after"] < 0.5 * facts["before"]
    assert (facts["steps"], facts["rate"], facts["data_used"], facts["held_out"]) == (200, 1e-2, False, HELD)
    assert facts["prior"] == "gaussian inputs, mean 0, std 1"
    assert json.loads(json.dumps(facts)) == facts
    x = torch.randn(4000, 6, generator=seeded(99))  # and it is no accident of what was held out
    with torch.no_grad():
        y = dense(x).log_softmax(1)
        apart = [
            F.kl_div(one(x).log_softmax(1), y, log_target=True, reduction="batchmean")
            for one in (small.model, better.model)
        ]
    assert float(apart[0]) == pytest.approx(facts["before"], rel=0.5)
    assert float(apart[1]) == pytest.approx(facts["after"], rel=0.5)


def test_the_summary_says_that_it_was_trained(dense, small):
    better = distill(small, dense, **QUICK)
    facts, said = better.plan.recipe["distilled"], " ".join(better.summary().split())
    assert "trained afterwards: 20 steps" in said
    assert "data used: no; " in said
    assert f"went from {facts['before']:.4g} to {facts['after']:.4g}." in said
    assert max(map(len, better.summary().splitlines())) <= 80
    assert "trained" not in small.summary()


def test_nothing_given_is_touched(small):
    dense = lenet_like(1).train()
    before = copy.deepcopy(dense), copy.deepcopy(small.model)
    recipe = dict(small.plan.recipe)
    noise = torch.random.get_rng_state()
    better = distill(small, dense, **QUICK)
    assert equal_states(before[0], dense)
    assert equal_states(before[1], small.model)
    assert small.plan.recipe == recipe
    assert dense.training
    assert all(p.grad is None for model in (dense, small.model, better.model) for p in model.parameters())
    assert torch.equal(noise, torch.random.get_rng_state())
    assert not equal_states(better.model, small.model)
    assert type(better.model) is type(small.model)


def test_a_module_gives_a_module_in_its_mode(dense, small):
    model = copy.deepcopy(small.model).train()
    better = distill(model, dense, **QUICK)
    assert isinstance(better, nn.Sequential)
    assert better.training
    assert equal_states(better, distill(small, dense, **QUICK).model)


def test_the_seed_decides(dense, small):
    one, two, other = (distill(small, dense, seed=seed, **QUICK).model for seed in (3, 3, 4))
    assert equal_states(one, two)
    assert not equal_states(one, other)


def test_batch_norms_keep_their_statistics_and_dropout_is_off():
    dense = conv()
    small = cp.prune(dense, torch.zeros(4, 2, 6, 6), units={"0": 3}, prior="noise")
    better = distill(small, dense, torch.zeros(4, 2, 6, 6), prior="noise", steps=40, rate=1e-2)
    before, after = small.model[1], better.model[1]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert not torch.equal(before.weight, after.weight)
    assert after.training == before.training
    networks = copy.deepcopy(small.model).eval(), copy.deepcopy(dense).eval()  # the mode it is given in is no matter
    same = distill(*networks, torch.zeros(4, 2, 6, 6), prior="noise", steps=40, rate=1e-2)
    assert equal_states(same, better.model)
    facts = better.plan.recipe["distilled"]
    assert facts["loss"] == "squares"
    assert facts["after"] < facts["before"]


def test_a_stopped_run_ends_in_the_same_bits(dense, small, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "INTERVAL", 0.0)
    whole = distill(small, dense, **QUICK)
    for stop in (7, 13):

        def stopped(done, total, name, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            distill(small, dense, keep=tmp_path / "state", progress=stopped, **QUICK)
        assert sorted(snapshot(tmp_path / "state")) == ["state.json", f"step-{stop}.safetensors"]
    seen = []
    again = distill(small, dense, keep=tmp_path / "state", progress=lambda *step: seen.append(step[0]), **QUICK)
    assert seen == list(range(13, 21))
    assert equal_states(again.model, whole.model)
    assert again.plan.recipe["distilled"] == whole.plan.recipe["distilled"]


@pytest.mark.parametrize("moment", ["write_tensors", "write_json", "replace"])
def test_a_stop_while_the_state_is_written_leaves_the_last_one(dense, small, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(engine, "INTERVAL", 0.0)
    where, calls = (engine.os if moment == "replace" else engine), []
    real = getattr(where, moment)

    def stopped(*words):
        calls.append(words)
        if len(calls) == 5:
            if moment != "replace":
                words[0].write_text("{ half of it")
            raise KeyboardInterrupt
        real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(where, moment, stopped)
        with pytest.raises(KeyboardInterrupt):
            distill(small, dense, keep=tmp_path / "state", **QUICK)
    assert not list((tmp_path / "state").glob("*.part"))
    body = json.loads((tmp_path / "state" / "state.json").read_text())
    assert (tmp_path / "state" / body["file"]).exists()
    again = distill(small, dense, keep=tmp_path / "state", **QUICK)
    assert equal_states(again.model, distill(small, dense, **QUICK).model)


def test_a_state_of_another_run_is_refused(dense, small, tmp_path):
    distill(small, dense, keep=tmp_path / "state", **QUICK)
    for more, word in (({"seed": 5}, "seed"), ({"batch": 4}, "batch"), ({"prior": cp.Gaussian(std=2.0)}, "prior")):
        with pytest.raises(CheckpointError, match=word):
            distill(small, dense, keep=tmp_path / "state", **QUICK, **more)
    with pytest.raises(CheckpointError, match="other weights"):
        distill(small, lenet_like(2), keep=tmp_path / "state", **QUICK)
    distill(small.model, dense, keep=tmp_path / "plain", **QUICK)
    with pytest.raises(CheckpointError, match="dense network"):
        distill(small.model, lenet_like(2), keep=tmp_path / "plain", **QUICK)
    (tmp_path / "state" / "step-20.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-20\.safetensors"):
        distill(small, dense, keep=tmp_path / "state", **QUICK)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="new or empty"):
        distill(small, dense, keep=tmp_path / "mine", **QUICK)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_other_data_are_no_way_to_go_on(dense, small, tmp_path):
    x = torch.randn(40, 6, generator=seeded(0))
    distill(small, dense, data=[x], keep=tmp_path / "state", **QUICK)
    with pytest.raises(CheckpointError, match="inputs"):
        distill(small, dense, data=[x + 1], keep=tmp_path / "state", **QUICK)


def test_the_users_data(dense, small):
    x = torch.randn(200, 6, generator=seeded(5)) + 1
    better = distill(small, dense, data=[(part, None) for part in x.split(30)], steps=100, rate=1e-2)
    facts = better.plan.recipe["distilled"]
    assert facts["data_used"] is True
    assert facts["held_out"] == 25
    assert facts["after"] < facts["before"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_language_model_on_its_own_text(dtype):
    dense = llama(dtype)
    small = cp.prune(dense, tokens(), units={"*mlp*": 8}, prior="noise", method="uniform")
    prior = cp.Generated(tokens=512, length=16)
    better = distill(small, dense, tokens(), prior=prior, steps=80, rate=1e-2)
    facts = better.plan.recipe["distilled"]
    assert facts["loss"] == "kl"
    assert "sampled itself" in facts["prior"]
    assert facts["after"] < facts["before"]
    assert {p.dtype for p in better.model.parameters()} == {dtype}


def test_double_precision_stays(dense):
    wide = lenet_like(1, torch.float64)
    with pytest.warns(UserWarning, match="better as it was"):
        better = distill(cp.prune(wide, units={"0": 5}), wide, **QUICK)
    assert "IT ROSE" in better.summary()
    assert better.model[0].weight.dtype == torch.float64


def test_kl_by_hand():
    y, z = torch.randn(3, 5, generator=seeded(0)), torch.randn(3, 5, generator=seeded(1))
    p, q = y.softmax(1), z.softmax(1)
    by_hand = sum(float(p[i, j] * math.log(p[i, j] / q[i, j])) for i in range(3) for j in range(5)) / 3
    loss, rows = Agreement("kl")([y], [z], None)
    assert (float(loss), rows) == (pytest.approx(by_hand, rel=1e-5), 3)
    assert float(Agreement("kl")([y], [y + 7], None)[0]) == pytest.approx(0, abs=1e-6)


def test_masked_tokens_do_not_count():
    y, z = torch.randn(2, 4, 5, generator=seeded(0)), torch.randn(2, 4, 5, generator=seeded(1))
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    loss, rows = Agreement("kl")([y], [z], mask)
    expected, _ = Agreement("kl")([torch.cat([y[0, :2], y[1, :1]])], [torch.cat([z[0, :2], z[1, :1]])], None)
    assert rows == 3
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_squares_by_hand_are_a_share_of_the_spread():
    x = torch.randn(50, 6, generator=seeded(0))
    net = lenet_like(0)
    with torch.no_grad():
        y = net(x)
    one = agreement_of(net, [((x[:20],), {}), ((x[20:],), {})], "squares")
    assert one.spreads[0] == pytest.approx(float(y.double().var(correction=0)), rel=1e-5)
    assert float(one([y], [y.mean() * torch.ones_like(y)], None)[0]) == pytest.approx(1.0, rel=1e-4)


def test_which_loss(dense):
    assert agreement_of(dense, [((torch.randn(9, 6),), {})]).kind == "kl"
    assert agreement_of(nn.Linear(6, 1), [((torch.randn(9, 6),), {})]).kind == "squares"
    assert agreement_of(llama(), [((), tokens())]).kind == "kl"
    assert agreement_of(conv(), [((torch.randn(2, 2, 6, 6),), {})]).kind == "squares"


def test_the_rate_rises_and_falls():
    rates = [rate_at(t, 100, 2.0) for t in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(2.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert rate_at(0, 1, 2.0) == pytest.approx(2.0)


def test_a_pool_gives_every_input_once_a_round_and_keeps_others_back():
    short, long = torch.arange(30.0)[:, None], 100 + torch.arange(18.0)[:, None].expand(-1, 2)
    pool = pooled(Data([short[:17], long, short[17:]]), None, steps=100, size=4, seed=0)
    assert isinstance(pool, Pool)
    kept = sorted(float(v) for (x,), _ in pool.held for v in x[:, 0])
    everything = sorted([*short[:, 0].tolist(), *long[:, 0].tolist()])
    length = sum(-(-rows_of(group) // 4) for group in pool.groups)
    rounds = []
    for turn in range(2):
        calls = [pool.batch(turn * length + i)[0][0] for i in range(length)]
        assert all(len(x) <= 4 for x in calls)
        rounds.append([float(v) for x in calls for v in x[:, 0]])
        assert sorted(rounds[-1] + kept) == everything
    assert rounds[0] != rounds[1]
    assert kept


def test_noise_depends_on_the_step_alone():
    from coreprune.model.capture import capture

    noise = Noise(capture(nn.Linear(3, 2), torch.zeros(1, 3)), 1.0, 0.5, (1.0,), 500, 0)
    one, again, other = (noise.batch(step)[0][0] for step in (4, 4, 5))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:HELD], noise.held[0][0][0])
    parts = [call[0][0] for call in Noise(noise.captured, 1.0, 0.5, (1.0,), 7, 0).held]
    assert max(map(len, parts)) == 7
    assert torch.equal(torch.cat(parts), noise.held[0][0][0])
    assert float(one.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(one.std()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"rate": -1}, "rate=-1"),
        ({"rate": 1e38}, "rate=1e+38"),
        ({"rate": math.nan}, "rate=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"loss": "mae"}, "loss='mae'"),
        ({"prior": "words"}, "prior='words'"),
        ({"prior": 3}, "prior=3"),
        ({"data": 3}, "data=3"),
        ({"data": [torch.zeros(3, 6)], "prior": "noise"}, "both prior= and data="),
        ({"data": [torch.zeros(1, 6)]}, "no two inputs"),
        ({"data": [torch.zeros(9, 7)]}, "cannot be run"),
        ({"prior": "generated"}, "reads no tokens"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_arguments(dense, small, more, word):
    with pytest.raises(InvalidInputError) as caught:
        distill(small, dense, **more)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_networks(dense, small):
    with pytest.raises(InvalidInputError, match="small is a str"):
        distill("small", dense)
    with pytest.raises(InvalidInputError, match="dense is a Pruned"):
        distill(small, small)
    with pytest.raises(InvalidInputError, match="differ in shape"):
        distill(nn.Linear(6, 3), dense, **QUICK)
    frozen = copy.deepcopy(small.model).requires_grad_(False)
    with pytest.raises(InvalidInputError, match="frozen"):
        distill(frozen, dense, **QUICK)
    broken = copy.deepcopy(small.model)
    with torch.no_grad():
        broken[0].bias[0] = math.nan
    with pytest.raises(InvalidInputError, match=r"0\.bias"):
        distill(broken, dense, **QUICK)
    with pytest.raises(UnsupportedModelError, match="example_inputs"):
        distill(conv(), conv(), **QUICK)


def test_only_what_is_not_frozen_moves(dense, small):
    model = copy.deepcopy(small.model)
    model[0].requires_grad_(False)
    better = distill(model, dense, **QUICK)
    assert torch.equal(better[0].weight, model[0].weight)
    assert not torch.equal(better[2].weight, model[2].weight)
    assert [p.requires_grad for p in better.parameters()] == [p.requires_grad for p in model.parameters()]


def test_a_loss_that_is_not_finite_is_told(dense, small):
    with pytest.raises(InvalidInputError, match="not finite at step 1:"):
        distill(small, dense, data=[torch.full((20, 6), math.inf)], **QUICK)
    with pytest.raises(InvalidInputError, match="the same for all"):
        agreement_of(nn.Linear(6, 1), [((torch.zeros(9, 6),), {})])


def test_tied_weights_stay_tied():
    from coreprune.surgery.apply import ties

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mlp = nn.Embedding(11, 6), lenet_like(0)
            self.back = nn.Linear(4, 6)
            self.out = nn.Linear(6, 11, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids):
            return self.out(self.back(self.mlp(self.table(ids))))

    dense, ids = Tied(), torch.arange(8)[:, None]
    better = distill(copy.deepcopy(dense), dense, ids, prior="noise", **QUICK)
    assert ties(better) == ties(dense) != {}


def test_outputs_of_a_language_model_are_its_logits_alone():
    (found,) = outputs(llama(), ((), tokens() | {"use_cache": True}))
    assert found.shape == (2, 8, 40)

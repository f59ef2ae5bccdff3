"""Tokens per second, other runtimes, and how they are shown."""

from __future__ import annotations

import importlib.util
import json
import time

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.cli.output import dumped
from coreprune.errors import InvalidInputError
from coreprune.model.quiet import quiet
from coreprune.report import runtimes as roads
from coreprune.report.cost import Change, Cost, measure
from coreprune.report.generation import Generation, generation
from coreprune.report.page import page
from coreprune.report.runtimes import Runtime, check_runtimes, runtimes
from coreprune.report.speed import lines, speed_html, speed_text
from coreprune.report.turns import Latency, timed
from report.results import saved, stack

CPU = torch.device("cpu")


def latency(before, after, runs=7):
    return Latency(before, after, (0.9 * before, 1.1 * before), (0.8 * after, 1.25 * after), runs, 1, "cpu")


def cost():
    written = Generation(100, 20, latency(0.5, 0.25), latency(2.0, 1.0))
    others = (
        Runtime("compile", "torch.compile", latency(0.02, 0.016)),
        Runtime("onnx", "onnxruntime", None, "<onnx> not installed"),
    )
    return Cost("1×16 int64", Change(10, 5), latency(0.04, 0.01), "float32", written, others)


def test_a_busy_machine_is_told_and_a_quiet_one_is_not():
    quiet_runs = Latency(0.04, 0.01, (0.04, 0.041), (0.01, 0.0105), 7, 1, "cpu")
    assert "busy" not in speed_text(Cost("x", Change(10, 5), quiet_runs))
    assert "up to 45% apart, as on a machine that is busy" in speed_text(cost()).replace("\n  ", " ")


def llama(hidden=24, places=64):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=places,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_calls_take_turns_and_what_prepares_them_takes_no_time(monkeypatch):
    now, done = [0.0], []

    def call(name, takes):
        def run():
            done.append(name)
            now[0] += takes

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = timed(call("a", 2.0), call("b", 0.5), CPU, 0, fewest=3, prepare=call("p", 100.0))
    assert "".join(done) == "papbpapb" + "papb" * 3
    assert (found.before, found.after, found.runs) == (2.0, 0.5, 3)
    assert found.before_quartiles == (2.0, 2.0)
    assert found.speedup == 4


def test_what_is_written_is_the_greedy_text():
    """Each token is the likeliest after all before it, as one forward pass over the whole says."""
    from coreprune.report.generation import _Writer

    model = llama()
    writer = _Writer(model, torch.tensor([[5, 9, 2]]), 6)
    seen = []
    inner = model.forward

    def watch(*args, **kwargs):
        seen.append(kwargs["input_ids"])
        return inner(*args, **kwargs)

    model.forward = watch
    writer._read = lambda: inner(input_ids=torch.tensor([[5, 9, 2]]), use_cache=True)
    with torch.no_grad():
        writer.prepare()
        writer()
        whole = torch.cat([torch.tensor([[5, 9, 2]]), *seen], 1)
        likeliest = inner(input_ids=whole, use_cache=False).logits.argmax(-1)
    assert [one.shape for one in seen] == [(1, 1)] * 6
    assert torch.equal(whole[:, 3:], likeliest[:, 2:-1])


def test_rates_are_tokens_over_time():
    found = cost().generation
    assert found.read_per_second == (200.0, 400.0)
    assert found.written_per_second == (10.0, 20.0)


def test_a_model_is_measured_within_its_places():
    found = generation(llama(places=20), llama(8, places=20), 0)
    assert (found.prompt, found.tokens) == (10, 10)
    assert found.writing.runs == 3
    assert min(found.written_per_second) > 0


def test_only_language_models_write():
    found = measure(stack(), stack(), torch.zeros(1, 6), seconds=0)
    assert (found.generation, found.runtimes) == (None, ())


def test_onnxruntime_gives_a_time_of_the_same_call():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    (found,) = runtimes(stack().eval(), stack().eval(), (torch.zeros(3, 6),), {}, ["onnx"], 0)
    assert found.why == ""
    assert found.latency.runs == 5
    run = roads.RUNTIMES["onnx"][1]
    x = torch.randn(3, 6)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, quiet():
        (out,) = run(stack().eval(), (x,), {}, Path(folder) / "0")()
    torch.testing.assert_close(torch.from_numpy(out), stack()(x).detach(), rtol=1e-5, atol=1e-6)


def test_what_is_not_installed_is_said(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    (found,) = runtimes(stack(), stack(), (torch.zeros(1, 6),), {}, ["onnx"], 0)
    assert found.latency is None
    assert "onnxruntime not installed: pip install" in found.why


def test_what_does_not_compile_is_said(monkeypatch):
    def fails(model, *more):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setitem(roads.RUNTIMES, "compile", ("torch.compile", fails))
    (found,) = runtimes(stack(), stack(), (torch.zeros(1, 6),), {}, ["compile"], 0)
    assert found == Runtime("compile", "torch.compile", None, "no compiler")


@pytest.mark.parametrize("asked", ["tvm", "eager,tvm", "", []])
def test_unknown_runtimes_are_refused(asked):
    with pytest.raises(InvalidInputError, match="give some of eager, compile, onnx"):
        check_runtimes(asked)


def test_runtimes_are_those_that_are_named():
    assert check_runtimes("onnx,eager,onnx") == ("onnx", "eager")
    assert check_runtimes(["compile"]) == ("compile",)


def test_the_lines():
    found = {line.what: line for line in lines(cost())}
    assert (found["a forward pass"].before, found["a forward pass"].after, found["a forward pass"].faster) == (
        "40 ms", "10 ms", 4.0,
    )  # fmt: skip
    assert found["the same, torch.compile"].faster == 1.25
    assert found["the same, onnxruntime"].why == "<onnx> not installed"
    writing = found["writing, tokens/s"]
    assert (writing.before, writing.after, writing.spread) == ("10", "20", "16 to 25")
    assert found["reading, tokens/s"].after == "400"


def test_the_text_fits_a_terminal_and_says_what_was_run():
    text = str(cost())
    assert text == speed_text(cost())
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("1×16 int64", "1 thread on cpu, float32", "100 tokens", "20 tokens", "7 runs", "<onnx> not installed"):
        assert word in " ".join(text.split())


def test_a_notebook_shows_it_escaped():
    html = speed_html(cost())
    assert html == cost()._repr_html_()
    assert "&lt;onnx&gt;" in html
    assert "<onnx>" not in html
    assert ">20</td>" in html


def test_the_page_shows_it(tmp_path):
    from dataclasses import replace

    _, found = saved(tmp_path / "s", stack(), units={"0": 7})
    html = page(replace(found, cost=cost()))
    assert "tokens per second" in html
    assert "2.00× as fast" in html
    assert "not measured: &lt;onnx&gt; not installed" in html
    body = replace(found, cost=cost()).to_json()
    assert body["cost"]["generation"]["written_per_second"] == [10.0, 20.0]
    json.loads(dumped(body))


def test_speed_is_that_of_the_report(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    small = cp.prune(net, units={"0": 3})
    assert small.speed(net, seconds=0).multiply_adds == Change(48, 18)
    small.report(tmp_path / "r.html", net, runtimes=("eager",))
    with pytest.raises(InvalidInputError, match="runtimes"):
        small.report(tmp_path / "r.html", net, runtimes=("tvm",))

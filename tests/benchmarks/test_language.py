"""benchmarks/language.py on a Llama of a few thousand numbers: its rows, what it stores, and its tables."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import seeded

import cases
import language
import language_report
import records
import texts
from baselines import METHODS
from baselines.slicegpt import parameters_of, width_for
from cases import About, Bench
from decoding import reading, speeds, writing

transformers = pytest.importorskip("transformers")

VOCABULARY = 50


def tiny():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8 if parameter.dim() == 2 else 1)
    return model


def ids(count, seed):
    return torch.randint(VOCABULARY, (count, 20), generator=seeded(seed))


def load(data=None):
    model, held = tiny(), ids(4, 9)
    return Bench(
        "tiny", ABOUT, model, ids(8, 5).split(2), lambda network: texts.perplexity(network, held),
        lambda network: texts.perplexity(network, held), {"use_cache": False},
    )  # fmt: skip


ABOUT = About((0.25, 0.5), (160, 80), "perplexity", ".2f", "gated", load)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Moments are kept here."""
    monkeypatch.setattr(cases, "CACHE", tmp_path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results go here, and the one network is the tiny one."""
    for module in (language, language_report):
        monkeypatch.setattr(module, "NETWORKS", {"tiny": ABOUT})
    for module in (language, language_report, records):
        monkeypatch.setattr(module, "results", lambda: tmp_path)
    return tmp_path


def asked(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["language.py", *words])
    language.main()


#: some of each sort: with draws, with data, with a bias, merged; and what has rows at its own widths
SOME = {"dense", "uniform", "Wanda-sp", "FLAP", "folding, Fold-AR", "SliceGPT", "SliceGPT, embeddings aside"}


def test_every_method_has_its_rows():
    rows = cases.cases("tiny", ABOUT)
    assert len({row.key for row in rows}) == len(rows)
    mine = [row for row in rows if row.part == "baselines"]
    assert {row.method for row in mine} == {*METHODS, "dense"}
    assert len(mine) == 1 + 2 * (8 + 2 * 5) + 2 * 2
    for row in mine[1:]:
        assert (row.tokens > 0) == METHODS[row.method].data
        assert len(row.seeds) == (3 if row.method == "uniform" else 1)
    assert len([row for row in rows if row.part == "slicegpt"]) == 2 * 2 * 2
    ours = {row.method for row in rows if row.part == "coreprune"}
    assert len(ours) == 8
    assert all(len([row for row in rows if row.method == one and row.tokens in {0, 80}]) == 3 for one in ours)


def test_rows_of_the_baselines(folder, monkeypatch, capsys):
    for module in (language, language_report):
        monkeypatch.setattr(module, "NETWORKS", {"tiny": replace(ABOUT, fractions=(0.25,), amounts=(80,))})
    threads = torch.get_num_threads()
    try:
        asked(monkeypatch, "--rows", *SOME)
        first = json.loads((folder / "language.json").read_text())
        capsys.readouterr()
        asked(monkeypatch, "--rows", *SOME)
    finally:
        torch.set_num_threads(threads)
    assert "[1/" not in capsys.readouterr().out  # all was stored
    assert json.loads((folder / "language.json").read_text()) == first
    rows, bench = first["rows"], load()
    whole = sum(p.numel() for p in bench.model.parameters())
    one = parameters_of(bench.model, 24) - parameters_of(bench.model, 23)  # what one more coordinate takes
    assert {row["method"] for row in rows} == SOME
    assert len(rows) == len(SOME) + 2
    gone = {"−25%": 2 * 3 * 24 * 10, "own widths": 2 * 3 * 24 * 10, "nothing": 0}
    for row in rows:
        assert math.isfinite(row["figure"])
        assert row["dense_parameters"] == whole
        biases = 2 * 24 if row["method"] == "FLAP" else 0
        if row["method"] == "SliceGPT":
            assert whole - gone[row["cut"]] - row["parameters"] in range(one)
        elif row["method"] in METHODS and row["cut"] != "own widths":
            assert row["parameters"] == whole - gone[row["cut"]] + biases
        elif row["cut"] == "own widths":
            assert 0 <= whole - gone[row["cut"]] + biases - row["parameters"] < 3 * 24
        data = row["method"] in METHODS and METHODS[row["method"]].data
        assert row["data_used"] == (data or row["method"].startswith("SliceGPT")) == (row["tokens"] > 0)
        assert row["commit"]
        assert len(row["figures"]) == (3 if row["method"] == "uniform" else 1)
    table = (folder / "language.md").read_text()
    assert all(f"| {label} |" in table for label in SOME - {"dense"})
    assert (folder / "language.svg").exists()


def test_slices_have_the_parameters_that_they_are_to_have():
    bench = load()
    kept = bench.parameters(bench.widths(0.25))
    k = width_for(bench.model, kept)
    assert parameters_of(bench.model, k) <= kept < parameters_of(bench.model, k + 1)
    whole = sum(p.numel() for p in bench.model.model.layers.parameters() if p.dim() == 2)
    aside = cases.by_slicegpt(bench, 0, fraction=0.25, tokens=80, aside=True).network
    inner = sum(p.numel() for p in aside.model.layers.parameters())
    assert inner <= whole - 2 * 3 * 24 * 10 < inner + 600
    assert bench.model.config.hidden_size > aside.lm_head.in_features > k


def test_ours_speed_and_study(folder, monkeypatch):
    monkeypatch.setattr(language, "speeds", partial(speeds, rounds=1))
    bench = load()
    keys = {("coreprune, noise", "own widths", 0), ("coreprune, real text", "−25%", 80)}
    wanted = [one for one in cases.cases("tiny", ABOUT) if one.key[1:] in keys]
    language.rows(bench, wanted)
    language.speed(bench)
    language.study(bench, [128], again=False)
    rows = language_report.known("rows")
    assert [row["data_used"] for row in rows] == [False, True]
    kept = bench.parameters(bench.widths(0.25))
    assert all(row["compared"] and row["parameters"] <= kept for row in rows)
    assert all(row["parameters"] == kept for row in rows if row["cut"] == "−25%")
    shapes = {row["shape"]: row for row in language_report.known("speed")}
    assert len(shapes) == 6
    assert all(row["read"] > 0 and row["written"] > 0 for row in shapes.values())
    assert [row["tokens"] for row in language_report.known("study")] == [128]
    table = language_report.markdown()
    language_report.draw()
    assert "own text" in table
    assert (folder / "language-tokens.svg").exists()
    language.store("rows", [{**rows[0], "figure": 7.0}], ("network", "method", "cut", "tokens"))
    assert [row["figure"] for row in language_report.known("rows")].count(7.0) == 1
    assert len(language_report.known("rows")) == 2


def test_moments_are_of_every_token(tmp_path, monkeypatch):
    bench = load()
    batches, seen = bench.text(160), bench.seen(160)[0]
    assert len(batches) == 4
    site = bench.sites[1]
    block, caught = bench.model.model.layers[1].mlp.down_proj, []
    handle = block.register_forward_pre_hook(lambda module, args: caught.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            bench.model(input_ids=batch, use_cache=False)
    handle.remove()
    h = torch.cat(caught).double()
    (one,) = seen[site.name]
    assert one.count == len(h) == 160
    torch.testing.assert_close(one.second, h.T @ h / 160, rtol=1e-4, atol=1e-5)
    again = load()
    monkeypatch.setattr(Bench, "observed", None)  # kept, and not measured again
    (kept,) = again.seen(160)[0][site.name]
    assert torch.equal(kept.covariance, one.covariance)
    assert torch.equal(kept.mean, one.mean)
    assert (kept.count, again.seen(160)[1]) == (160, bench.seen(160)[1])
    monkeypatch.undo()
    monkeypatch.setattr(cases, "CACHE", tmp_path / "other")
    monkeypatch.setattr(cases, "PASS", 80)
    (two,) = load().seen(160)[0][site.name]
    torch.testing.assert_close(two.covariance, one.covariance, rtol=1e-4, atol=1e-5)
    assert two.count == 160


def test_perplexity_by_a_loop():
    model, held, losses = tiny(), ids(3, 1), []
    with torch.no_grad():
        for window in held:
            scores = model(input_ids=window[None], use_cache=False).logits[0].double().log_softmax(-1)
            losses += [-float(scores[t, window[t + 1]]) for t in range(len(window) - 1)]
    assert texts.perplexity(model, held) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_calibration_text_is_of_other_genres_than_what_is_measured():
    words = {f"{genre}{i:02}": f"{genre}{i:02} " * 600 for genre in ("ca", "cb", "cn", "cr") for i in range(20)}
    known = {f"{name} ": i for i, name in enumerate(words)}

    def tokenizer(text):
        return {"input_ids": [known[text[i : i + 5]] for i in range(0, len(text), 5)]}

    chosen = texts.calibration(tokenizer, words, 20)
    assert chosen.shape == (20, texts.WINDOW)
    names = [list(words)[int(row[0])] for row in chosen]
    assert {name[:2] for name in names} == {"cb", "cr"}
    assert len(set(names)) == 20
    first = [name[:2] for name in names[:6]]
    assert first.count("cb") == 3  # the first of them are even too
    assert {list(words)[int(i)][:2] for i in texts.genre(tokenizer, words, "ca").flatten()} == {"ca"}


def test_speeds_take_turns_and_count_tokens(monkeypatch):
    turns, clock = [], iter(range(1000))

    class Watched(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.inner = name, tiny()

        def forward(self, **how):
            turns.append((self.name, how["input_ids"].shape[1]))
            return self.inner(**how)

    found = speeds({"a": Watched("a"), "b": Watched("b")}, ids(2, 0), rounds=2)
    names = [name for name, _ in turns]
    assert names == (["a"] * 66 + ["b"] * 66) * 2
    assert [length for _, length in turns[:4]] == [20, 20, 1, 1]
    assert found["a"]["read"] > found["a"]["written"] > 0
    monkeypatch.setattr("decoding.time.process_time", lambda: next(clock))
    assert reading(tiny(), ids(2, 0)) == 40.0
    assert writing(tiny(), ids(1, 0), 5) == 5.0

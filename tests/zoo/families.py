"""Tiny random models of the families of `transformers`, and how many sites a reader of their code expects.

The kinds of `expect`, each the least number of groups of coupled units whose removal is exact:

- `ffn`: inner width of a feed-forward block (plain or gated; of a shared expert too)
- `experts`: inner width of the experts of one layer, which share one tensor
- `heads`: heads of one attention, or its groups of queries with their key and value; of a whole T5 stack, whose
  layers share one table of biases by head
- `conv`: channels that enter no sum: inside a block, of a stem, between blocks without shortcut
- `stream`: channels of a residual stream, all its writers and readers; only where no LayerNorm or RMSNorm reads them,
  since those mix channels
- `squeeze`: width of a squeeze-excite bottleneck
- `pooler`: width between two linear layers of the head
- `embedding`: width of a factorised embedding
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, LABELS = 61, 7, 3


@dataclass(frozen=True)
class Family:
    """One model class with a tiny configuration, keyword inputs for it, and the sites to expect."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor | bool]]
    expect: dict[str, int]

    def __str__(self) -> str:
        return self.name


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with parameters and statistics that all matter: no zeros, no ones, no tiny scales."""
    g = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> None:
        t.copy_(low + (high - low) * torch.rand(t.shape, generator=g, dtype=t.dtype))

    def normal(t: Tensor, scale: float) -> None:
        t.copy_(scale * torch.randn(t.shape, generator=g, dtype=t.dtype))

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                normal(p, 0.3)
            elif p.ndim < 2 or name.endswith("grn.weight"):  # norms, layer scales
                uniform(p, 0.5, 1.5)
            else:
                normal(p, 1 / math.sqrt(math.prod(p.shape[1:]) if p.ndim > 3 else p.shape[-1]))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                normal(b, 0.5)
            elif name.endswith("running_var"):
                uniform(b, 0.5, 2.0)
    return model.eval()


def _family(
    model: str,
    config: str,
    inputs: Callable[[], dict[str, Any]],
    expect: dict[str, int],
    name: str = "",
    **settings: Any,
) -> Family:
    def make() -> nn.Module:
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return lively(getattr(transformers, model)(getattr(transformers, config + "Config")(**settings)))

    return Family(name or config.lower(), make, inputs, expect)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _tokens(length: int = LENGTH, seed: int = 1) -> Tensor:
    # token 0 pads, 1 and 2 begin and end; every sequence ends in 2, which CLIP and BART look for
    ids = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = 2
    return ids


def _image(side: int = 32) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": _normal(2, 3, side, side)}


def _text() -> dict[str, Tensor]:
    return {"input_ids": _tokens()}


def _causal() -> dict[str, Tensor | bool]:
    return {"input_ids": _tokens(), "use_cache": False}


def _pair() -> dict[str, Tensor | bool]:
    return {"input_ids": _tokens(9), "decoder_input_ids": _tokens(seed=2), "use_cache": False}


def _sound() -> dict[str, Tensor | bool]:
    return {"input_features": _normal(2, 10, 24), "decoder_input_ids": _tokens(), "use_cache": False}


def _caption() -> dict[str, Tensor]:
    return _image()() | _text()


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WORDS = {"vocab_size": VOCABULARY, **SPECIAL}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PATCHES = {"image_size": 32, "patch_size": 8, "num_labels": LABELS}
CLASSES = {"num_labels": LABELS}
PLACES = {"max_position_embeddings": 24}
TEXT = {**WORDS, **BLOCKS, **PLACES}
GROUPED = {**TEXT, "num_key_value_heads": 2}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 44, "decoder_ffn_dim": 52,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 6, "d_ff": 44, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1], **CLASSES}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}

TABLE = (
    # images
    _family(
        "ResNetForImageClassification", "ResNet", _image(), {"conv": 7, "stream": 2}, "resnet-bottleneck", **RESNET,
    ),
    _family(
        "ResNetForImageClassification", "ResNet", _image(), {"conv": 4, "stream": 2}, "resnet-basic",
        layer_type="basic", **RESNET,
    ),
    _family(
        "RegNetForImageClassification", "RegNet", _image(), {"conv": 4, "stream": 2, "squeeze": 3}, "regnet-y",
        groups_width=8, **RESNET,
    ),
    _family(
        "RegNetForImageClassification", "RegNet", _image(), {"conv": 4, "stream": 2}, "regnet-x",
        groups_width=8, layer_type="x", **RESNET,
    ),
    _family(
        "MobileNetV1ForImageClassification", "MobileNetV1", _image(), {"conv": 14},
        depth_multiplier=0.25, **CLASSES,
    ),
    _family(
        "MobileNetV2ForImageClassification", "MobileNetV2", _image(), {"conv": 20, "stream": 5},
        depth_multiplier=0.25, expand_ratio=3.0, finegrained_output=False, **CLASSES,
    ),
    _family(
        "EfficientNetForImageClassification", "EfficientNet", _image(), {"conv": 7, "stream": 1, "squeeze": 4},
        width_coefficient=0.25, depth_coefficient=1.0, depth_divisor=4, hidden_dim=320, image_size=32,
        in_channels=[32, 32, 48], out_channels=[32, 48, 64], kernel_sizes=[3, 3, 5], strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1], expand_ratios=[1, 3, 3], **CLASSES,
    ),
    _family(
        "ConvNextForImageClassification", "ConvNext", _image(), {"ffn": 3},
        num_stages=2, hidden_sizes=[16, 24], depths=[2, 1], **CLASSES,
    ),
    # GRN divides by a mean over the inner channels: cutting them is not exact
    _family(
        "ConvNextV2ForImageClassification", "ConvNextV2", _image(), {},
        num_stages=2, hidden_sizes=[16, 24], depths=[2, 1], **CLASSES,
    ),
    _family("ViTForImageClassification", "ViT", _image(), {"ffn": 2, "heads": 2}, **BLOCKS, **PATCHES),
    _family("DeiTForImageClassification", "DeiT", _image(), {"ffn": 2, "heads": 2}, **BLOCKS, **PATCHES),
    _family(
        "SwinForImageClassification", "Swin", _image(), {"ffn": 3, "heads": 3},
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4, mlp_ratio=1.5,
        **CLASSES,
    ),
    _family(
        "SegformerForSemanticSegmentation", "Segformer", _image(), {"ffn": 3, "heads": 3, "conv": 3},
        num_encoder_blocks=2, depths=[2, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[2, 4], mlp_ratios=[2, 3], decoder_hidden_size=20, **CLASSES,
    ),
    _family(
        "Dinov2ForImageClassification", "Dinov2", _image(), {"ffn": 2, "heads": 2},
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, **PATCHES,
    ),
    _family(
        "Dinov2ForImageClassification", "Dinov2", _image(), {"ffn": 2, "heads": 2}, "dinov2-swiglu",
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, use_swiglu_ffn=True, **PATCHES,
    ),
    _family(
        "BeitForImageClassification", "Beit", _image(), {"ffn": 2, "heads": 2},
        use_relative_position_bias=True, **BLOCKS, **PATCHES,
    ),
    # text, both directions
    _family("BertForSequenceClassification", "Bert", _text, {"ffn": 2, "heads": 2, "pooler": 1}, **TEXT, **CLASSES),
    _family(
        "RobertaForSequenceClassification", "Roberta", _text, {"ffn": 2, "heads": 2, "pooler": 1}, **TEXT, **CLASSES,
    ),
    _family(
        "DistilBertForSequenceClassification", "DistilBert", _text, {"ffn": 2, "heads": 2, "pooler": 1},
        dim=32, n_layers=2, n_heads=4, hidden_dim=44, **WORDS, **PLACES, **CLASSES,
    ),
    # one layer, used twice
    _family(
        "AlbertForSequenceClassification", "Albert", _text, {"ffn": 1, "heads": 1, "pooler": 1},
        embedding_size=20, **TEXT, **CLASSES,
    ),
    _family(
        "ElectraForSequenceClassification", "Electra", _text, {"ffn": 2, "heads": 2, "pooler": 1},
        embedding_size=20, **TEXT, **CLASSES,
    ),
    _family(
        "DebertaV2ForSequenceClassification", "DebertaV2", _text, {"ffn": 2, "heads": 2, "pooler": 1},
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4, norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, **TEXT, **CLASSES,
    ),
    # text, one direction
    _family(
        "GPT2LMHeadModel", "GPT2", _causal, {"ffn": 2, "heads": 2},
        n_embd=32, n_layer=2, n_head=4, n_inner=44, n_positions=24, **WORDS,
    ),
    _family(
        "OPTForCausalLM", "OPT", _causal, {"ffn": 2, "heads": 2},
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=44, word_embed_proj_dim=32,
        **WORDS, **PLACES,
    ),
    _family(
        "OPTForCausalLM", "OPT", _causal, {"ffn": 2, "heads": 2, "embedding": 1}, "opt-projected",
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=44, word_embed_proj_dim=20,
        do_layer_norm_before=False, **WORDS, **PLACES,
    ),
    _family("GPTNeoXForCausalLM", "GPTNeoX", _causal, {"ffn": 2, "heads": 2}, **TEXT),
    _family(
        "GPTNeoForCausalLM", "GPTNeo", _causal, {"ffn": 2, "heads": 2},
        hidden_size=32, num_layers=2, num_heads=4, intermediate_size=44, window_size=3,
        attention_types=[[["global", "local"], 1]], **WORDS, **PLACES,
    ),
    # the slopes of ALiBi are made from the number of heads: no heads
    _family("BloomForCausalLM", "Bloom", _causal, {"ffn": 2}, hidden_size=32, n_layer=2, n_head=4, **WORDS),
    _family("LlamaForCausalLM", "Llama", _causal, {"ffn": 2, "heads": 2}, **GROUPED),
    _family(
        "LlamaForCausalLM", "Llama", _causal, {"ffn": 2, "heads": 2}, "smollm", tie_word_embeddings=True, **GROUPED,
    ),
    _family("MistralForCausalLM", "Mistral", _causal, {"ffn": 2, "heads": 2}, sliding_window=4, **GROUPED),
    _family("Qwen2ForCausalLM", "Qwen2", _causal, {"ffn": 2, "heads": 2}, **GROUPED),
    _family("Qwen3ForCausalLM", "Qwen3", _causal, {"ffn": 2, "heads": 2}, head_dim=12, **GROUPED),
    _family("GemmaForCausalLM", "Gemma", _causal, {"ffn": 2, "heads": 2}, head_dim=12, num_key_value_heads=4, **TEXT),
    _family(
        "Gemma2ForCausalLM", "Gemma2", _causal, {"ffn": 2, "heads": 2},
        head_dim=12, query_pre_attn_scalar=12, sliding_window=4, **GROUPED,
    ),
    _family("PhiForCausalLM", "Phi", _causal, {"ffn": 2, "heads": 2}, **TEXT),
    _family("Phi3ForCausalLM", "Phi3", _causal, {"ffn": 2, "heads": 2}, **GROUPED),
    _family(
        "FalconForCausalLM", "Falcon", _causal, {"ffn": 2, "heads": 2}, "falcon-one-key",
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=44, **WORDS, **PLACES,
    ),
    _family(
        "FalconForCausalLM", "Falcon", _causal, {"ffn": 2, "heads": 2}, "falcon-grouped",
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=44, num_kv_heads=2,
        new_decoder_architecture=True, **WORDS, **PLACES,
    ),
    _family("StableLmForCausalLM", "StableLm", _causal, {"ffn": 2, "heads": 2}, **GROUPED),
    _family("OlmoForCausalLM", "Olmo", _causal, {"ffn": 2, "heads": 2}, clip_qkv=2.0, **GROUPED),
    _family(
        "MixtralForCausalLM", "Mixtral", _causal, {"experts": 2, "heads": 2},
        num_local_experts=4, num_experts_per_tok=2, **GROUPED,
    ),
    _family(
        "MixtralForCausalLM", "Mixtral", _causal, {"experts": 2, "heads": 2}, "mixtral-batched",
        num_local_experts=4, num_experts_per_tok=2, experts_implementation="batched_mm", **GROUPED,
    ),
    _family(
        "Qwen2MoeForCausalLM", "Qwen2Moe", _causal, {"experts": 2, "ffn": 2, "heads": 2},
        shared_expert_intermediate_size=28, **MOE, **GROUPED,
    ),
    _family(
        "Qwen3MoeForCausalLM", "Qwen3Moe", _causal, {"experts": 1, "ffn": 1, "heads": 2},
        head_dim=12, mlp_only_layers=[0], norm_topk_prob=True, **MOE, **GROUPED,
    ),
    # two stacks
    _family("T5ForConditionalGeneration", "T5", _pair, {"ffn": 4, "heads": 3}, **T5, **WORDS),
    _family(
        "T5ForConditionalGeneration", "T5", _pair, {"ffn": 4, "heads": 3}, "t5-gated",
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5, **WORDS,
    ),
    _family("BartForConditionalGeneration", "Bart", _pair, {"ffn": 4, "heads": 6}, **BART, **WORDS, **PLACES),
    _family(
        "WhisperForConditionalGeneration", "Whisper", _sound, {"ffn": 4, "heads": 6, "conv": 1},
        num_mel_bins=10, max_source_positions=12, max_target_positions=24, **BART, **WORDS,
    ),
    _family(
        "CLIPModel", "CLIP", _caption, {"ffn": 4, "heads": 4},
        text_config=TEXT, vision_config={**BLOCKS, "image_size": 32, "patch_size": 8}, projection_dim=20,
    ),
)  # fmt: skip

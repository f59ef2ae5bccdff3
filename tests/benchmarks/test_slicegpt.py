"""SliceGPT of benchmarks/baselines: rotating changes nothing, and slicing is a projection of the dense network's stream."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded

from baselines.slicegpt import parameters_of, slicegpt, width_for
from baselines.slicing import principal

transformers = pytest.importorskip("transformers")

WIDTH, VOCABULARY = 24, 50


def llama(tied=True):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.LlamaForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                if "norm" in name:
                    parameter.copy_(0.5 + torch.rand_like(parameter))
                else:
                    parameter.mul_(12)  # far from linear
    return model


def text(count=4, length=20, seed=0):
    return torch.randint(VOCABULARY, (count, length), generator=seeded(seed))


def projected(model, ids, axes):
    """Logits of the dense network whose residual stream is projected wherever the sliced one changes its coordinates."""
    core = model.model
    P = iter(Q @ Q.T for Q in axes)
    x = core.embed_tokens(ids).double() @ next(P)
    places = core.rotary_emb(x.float(), torch.arange(ids.shape[1])[None])
    for block in core.layers:
        added = block.self_attn(block.input_layernorm(x.float()), position_embeddings=places, attention_mask=None)[0]
        x = (x + added) @ next(P)
        x = (x + block.mlp(block.post_attention_layernorm(x.float()))) @ next(P)
    return model.lm_head(core.norm(x.float()))


def close(found, expected, tolerance=1e-4):
    return float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("tied", [True, False])
def test_rotating_changes_nothing(tied):
    model, ids = llama(tied), text(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        rotated = slicegpt(model, WIDTH, [text()])
        found, expected = rotated(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
    assert close(found, expected)
    shortcut = rotated.model.layers[1].after_mlp
    torch.testing.assert_close(shortcut @ shortcut.T, torch.eye(WIDTH), atol=1e-5, rtol=1e-5)
    assert float((shortcut - torch.eye(WIDTH)).abs().max()) > 0.1  # it is a rotation
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("k", [5, 16, 23])
def test_slicing_is_a_projection_of_the_stream(k):
    model, ids, used = llama(), text(seed=1), []

    def axes(second):
        used.append(principal(second, k))
        return used[-1]

    with torch.no_grad():
        sliced = slicegpt(model, k, [text(), text(seed=2)], axes)
        found = sliced(input_ids=ids, use_cache=False).logits
        assert len(used) == 7
        assert close(found, projected(model, ids, used))
        assert not close(found, model(input_ids=ids, use_cache=False).logits, 1e-2)


def test_the_axes_are_those_of_the_stream_so_far():
    """The first two sets of axes by hand: of the embeddings, and of what stands behind the first attention."""
    model, ids, k, seen = llama(), text(8), 10, []

    def axes(second):
        seen.append(second)
        return principal(second, k)

    with torch.no_grad():
        slicegpt(model, k, list(ids.split(4)), axes)
        x = model.model.embed_tokens(ids).double()
        torch.testing.assert_close(seen[0], torch.einsum("bti,btj->ij", x, x) / ids.numel())
        Q = principal(seen[0], k)
        block, x = model.model.layers[0], x @ Q @ Q.T
        places = model.model.rotary_emb(x.float(), torch.arange(ids.shape[1])[None])
        x = x + block.self_attn(block.input_layernorm(x.float()), position_embeddings=places, attention_mask=None)[0]
        torch.testing.assert_close(seen[1], torch.einsum("bti,btj->ij", x, x) / ids.numel(), rtol=1e-4, atol=1e-4)


def test_the_cache_and_the_count_are_right():
    model, k = llama(), 15
    sliced, ids = slicegpt(model, k, [text()]), text(1, 9, seed=4)
    with torch.no_grad():
        whole = sliced(input_ids=ids).logits
        first = sliced(input_ids=ids[:, :5], use_cache=True)
        rest = sliced(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in sliced.parameters()) == parameters_of(model, k)
    assert sum(p.numel() for p in sliced.model.layers.parameters()) == parameters_of(model, k, blocks=True)
    limit = parameters_of(model, k) + 1
    assert width_for(model, limit) == k
    assert width_for(model, parameters_of(model, k) - 1) == k - 1

"""When units are chosen by what they cost the whole network: which networks, and which requests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune import planning


class Encoder(nn.Module):
    """Reads tokens, and gives vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(50, 8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, ids):
        x = self.table(ids)
        return x + self.down(torch.relu(self.up(x)))


class Images(nn.Module):
    """Reads pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, use_cache=False, **sizes)).eval()


TOKENS = torch.zeros(2, 6, dtype=torch.long)


def requested(make, x, request_, monkeypatch):
    """What the engine is told for a call of `plan`."""
    torch.manual_seed(0)
    asked = []
    kind = planning.Request
    monkeypatch.setattr(planning, "Request", lambda *a, **k: asked.append(kind(*a, **k)) or asked[-1])
    cp.plan(make().eval(), x, prior="noise", **request_)
    return asked[0]


@pytest.mark.parametrize("make,x,request_,expected", [
    (Encoder, TOKENS, {"remove": {"*": 0.5}}, True),
    (Encoder, TOKENS, {"remove": 0.2}, True),
    (Encoder, TOKENS, {"budget": {"error": 0.2}}, False),  # shares of variance are asked for
    (Encoder, TOKENS, {"remove": {"*": 0.5}, "method": "magnitude"}, False),
    (Images, torch.zeros(1, 3, 8, 8), {"remove": 0.2}, False),
    (llama, TOKENS, {"remove": {"*mlp*": 0.5}}, False),
    (llama, TOKENS, {"remove": 0.2, "kinds": ["gated"]}, False),  # choosing by the readers is as good
    (llama, TOKENS, {"remove": 0.2, "kinds": ["gated"], "uniform": "config"}, False),
])  # fmt: skip
def test_costs_are_asked_for_where_they_tell_more(make, x, request_, expected, monkeypatch):
    assert requested(make, x, request_, monkeypatch).costs is expected


@pytest.mark.parametrize("make,x,request_,expected", [
    (Encoder, TOKENS, {"remove": 0.2}, True),
    (Encoder, TOKENS, {"remove": {"*": 0.5}}, False),  # nothing is shared out
    (Encoder, TOKENS, {"budget": {"error": 0.2}}, False),
    (Images, torch.zeros(1, 3, 8, 8), {"remove": 0.2}, False),
    (llama, TOKENS, {"budget": {"params": "80%"}, "kinds": ["gated"]}, True),
    (llama, TOKENS, {"remove": 0.2, "kinds": ["gated"], "uniform": "config"}, False),
])  # fmt: skip
def test_curves_of_text_are_of_clipped_samples(make, x, request_, expected, monkeypatch):
    assert requested(make, x, request_, monkeypatch).typical is expected


def test_a_budget_is_shared_out_by_what_the_outputs_feel():
    """Two blocks alike but for what becomes of them: the one whose output fades gives up its units."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.up1, self.down1, self.up2, self.down2 = (nn.Linear(*s) for s in ((8, 32), (32, 8), (8, 32), (32, 8)))

        def forward(self, ids):
            x = self.table(ids)
            return self.down1(torch.relu(self.up1(x))) + 0.01 * self.down2(torch.relu(self.up2(x)))

    torch.manual_seed(0)
    kept = cp.plan(Two().eval(), TOKENS, remove=0.3, kinds=["linear"], prior="noise").kept
    assert kept.get("up1", 32) > 2 * kept["up2"]

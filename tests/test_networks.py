"""What a cut network is good for, on four networks: compiled, exported, trained, saved, cut in place, cut again."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune import api
from coreprune.errors import CheckpointError
from coreprune.surgery import apply as surgery
from zoo import suite

HALF = {"*": 0.5}
NAMES = {"conv": "vgg", "resnet": "residual", "bert": "bert", "llama": "llama"}
_CUT: dict = {}


def network(name):
    """A fresh network and its inputs."""
    if name in {"bert", "llama"}:
        pytest.importorskip("transformers")
    net = suite.NETS[NAMES[name]]
    return net.make(), net.inputs()


def cut(name):
    """A network, its inputs, and the network cut by half; the last a copy."""
    if name not in _CUT:
        model, given = network(name)
        _CUT[name] = model, given, cp.prune(model, given, remove=HALF).model
    model, given, small = _CUT[name]
    return model, given, copy.deepcopy(small)


def call(model, given):
    return suite.numbered(suite.run(model, given))


def close(a, b, tolerance=1e-5):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert (value - b[key]).abs().max() <= tolerance * value.abs().max(), key
    return True


def digest(model):
    parts = [f"{k} {t.dtype} {tuple(t.shape)}".encode() + t.numpy().tobytes() for k, t in model.state_dict().items()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def batch(given):
    return ((), given) if isinstance(given, dict) else (given, {})


# ---------------------------------------------------------------- further tools


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_runs_under_the_compiler(name):
    _, given, small = cut(name)
    args, kwargs = batch(given)
    with torch.no_grad():
        compiled = torch.compile(small, backend="eager")
        assert close(suite.numbered(compiled(*args, **kwargs)), call(small, given))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_runs_as_compiled_code():
    _, given, small = cut("conv")
    try:
        torch.compile(nn.ReLU(), backend="inductor")(torch.ones(3))
    except Exception as error:  # whatever the compiler lacks
        pytest.skip(f"no compiler: {type(error).__name__}")
    with torch.no_grad():
        assert close(suite.numbered(torch.compile(small, backend="inductor")(*given)), call(small, given))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_is_exported(name):
    _, given, small = cut(name)
    args, kwargs = batch(given)
    with torch.no_grad():
        program = torch.export.export(small, args, kwargs, strict=False)
        assert close(suite.numbered(program.module()(*args, **kwargs)), call(small, given))


@pytest.mark.parametrize("name", ["conv", "bert"])
@pytest.mark.filterwarnings("ignore")
def test_runs_in_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    _, given, small = cut(name)
    args, kwargs = batch(given)
    file = tmp_path / "small.onnx"
    torch.onnx.export(small, args, kwargs=kwargs, f=str(file), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    values = [*args, *kwargs.values()]
    fed = {one.name: value.numpy() for one, value in zip(session.get_inputs(), values, strict=True)}
    results = [torch.from_numpy(value) for value in session.run(None, fed)]
    assert close({str(i): value for i, value in enumerate(results)}, call(small, given), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_trains(name):
    _, given, small = cut(name)
    args, kwargs = batch(given)
    small.eval()  # the same function before and after the step

    def loss():
        output = small(*args, **kwargs)
        return (output if isinstance(output, torch.Tensor) else output.logits).square().mean()

    before = loss()
    before.backward()
    silent = [k for k, p in small.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    # softmax over keys does not see what is added to all of them; words that are not in the batch get no gradient
    assert not [k for k in silent if "key.bias" not in k and "k_proj.bias" not in k], silent
    with torch.no_grad():
        scale = sum(float(p.grad.square().sum()) for p in small.parameters()) ** 0.5
        for p in small.parameters():
            p.sub_(1e-2 / scale * p.grad)
    assert loss() < before


# ---------------------------------------------------------------- in place


@pytest.mark.parametrize("name", NAMES)
def test_in_place_it_is_the_same_object_with_the_same_values(name):
    model, given = network(name)
    modules, copied = list(model.modules()), cut(name)[2]
    assert cp.prune(model, given, remove=HALF, inplace=True).model is model
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert digest(model) == digest(copied)
    assert suite.equal(call(model, given), call(copied, given))
    assert repr(model) == repr(copied)


@pytest.mark.parametrize("name", ["conv", "bert"])
def test_a_failure_on_the_way_leaves_everything_as_it_was(name, monkeypatch):
    model, given = network(name)
    plan = cp.plan(model, given, remove=HALF)
    put, calls = surgery._put, []

    def counted(*words):
        calls.append(words[0])
        put(*words)

    monkeypatch.setattr(surgery, "_put", counted)
    cp.apply(model, plan, given, inplace=False)
    half = len(calls) + len(calls) // 2  # in the middle of the second installation, which is that in place
    before, values, text = suite.state(model), suite.values(model), repr(model)
    calls.clear()

    def failing(*words):
        if len(calls) == half:
            raise MemoryError("no more")
        counted(*words)

    monkeypatch.setattr(surgery, "_put", failing)
    with pytest.raises(MemoryError):
        cp.apply(model, plan, given, inplace=True)
    assert {id(m) for m in calls} & {id(m) for m in model.modules()}, "the network itself was not reached"
    assert suite.state(model) == before
    assert suite.equal(suite.values(model), values)
    assert repr(model) == text


def test_a_cut_that_does_not_pass_the_check_changes_nothing(monkeypatch):
    model, given = network("conv")

    def refused(*_):
        raise cp.errors.UnsupportedModelError("as a test wants it")

    monkeypatch.setattr(api, "require", refused)
    before, values = suite.state(model), suite.values(model)
    with pytest.raises(cp.errors.UnsupportedModelError, match="as a test"):
        cp.prune(model, given, remove=HALF, inplace=True)
    assert suite.state(model) == before
    assert suite.equal(suite.values(model), values)


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize(
    "name, kind",
    [
        ("conv", torch.bfloat16),
        ("conv", torch.float64),
        ("resnet", torch.float16),
        ("bert", torch.bfloat16),
        ("llama", torch.float16),
    ],
)
def test_precision_is_kept_and_decisions_are_made_wide(name, kind):
    model, given = network(name)
    model, wide = model.to(kind), copy.deepcopy(model.to(kind)).double()

    def inputs(to):
        return given if isinstance(given, dict) else tuple(t.to(to) for t in given)

    low = cp.prune(model, inputs(kind), remove=HALF, prior="noise")  # text would be rounded otherwise
    assert {t.dtype for t in low.model.parameters()} == {kind}
    high = cp.prune(wide, inputs(torch.float64), remove=HALF, prior="noise")
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(low.plan.cuts, high.plan.cuts, strict=True))
    other = dict(high.model.named_parameters())
    for key, value in low.model.named_parameters():  # the inputs that are drawn are rounded, and so differ
        gap = (value.double() - other[key]).abs().max()
        assert gap <= 16 * max(torch.finfo(kind).eps, 1e-7) * other[key].abs().max(), key


def test_what_the_dense_network_has_is_kept():
    model, given = network("resnet")
    heard = []
    model.register_buffer("version", torch.tensor(7))
    model.blocks[0][0][0].weight.requires_grad_(False)
    model.last.weight.requires_grad_(False)
    model.blocks[1].register_forward_hook(lambda *_: heard.append("forward"))
    model.stem.register_forward_pre_hook(lambda *_: heard.append("before"))
    model.train()
    model.stem.eval()
    model.note = {"any": "thing"}
    small = cp.prune(model, given, remove=HALF).model
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen == ["last.weight", "blocks.0.0.0.weight"]
    assert int(small.version) == 7
    assert small.note == {"any": "thing"}
    heard.clear()
    small(*given)
    assert heard == ["before", "forward"]
    assert int(model.stem[1].num_batches_tracked) == int(suite.NETS["residual"].make().stem[1].num_batches_tracked)


def test_attributes_are_printed_as_they_are():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip
    small = cp.prune(suite.families.lively(net), (torch.randn(2, 3, 8, 8),), remove=HALF).model
    for line in (
        "(0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "(1): BatchNorm2d(4, eps", "(3): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=4)",
        "(5): Conv2d(4, 6, kernel_size=(1, 1)", "(6): GroupNorm(2, 6,", "(10): Linear(in_features=6, out_features=3",
    ):  # fmt: skip
        assert line in repr(small)


def test_heads_are_told_to_those_that_count_them():
    _, _, bert = cut("bert")
    inner = bert.bert.encoder.layer[0].attention.self
    assert (inner.num_attention_heads, inner.all_head_size) == (2, 16)
    assert (inner.query.out_features, bert.bert.encoder.layer[0].attention.output.dense.in_features) == (16, 16)
    _, _, llama = cut("llama")
    block = llama.model.layers[0]
    assert (block.self_attn.q_proj.out_features, block.self_attn.k_proj.out_features) == (16, 8)
    assert (block.mlp.gate_proj.out_features, block.mlp.down_proj.in_features) == (24, 24)


# ---------------------------------------------------------------- the same again

CHILD = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import test_networks as t
print(t.digest(t.cp.prune(*t.network({name!r}), remove=t.HALF, seed=3).model))
"""


@pytest.mark.parametrize("name", ["conv"])
def test_one_seed_makes_one_network(name):
    first = digest(cp.prune(*network(name), remove=HALF, seed=3).model)
    assert digest(cp.prune(*network(name), remove=HALF, seed=3).model) == first
    code = CHILD.format(tests=str(Path(__file__).parent), name=name)
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split()[-1] == first


def test_the_callers_random_numbers_are_left_alone():
    model, given = network("conv")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    cp.prune(model, given, remove=HALF)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["conv", "bert"])
def test_a_plan_from_a_file_does_the_same(name, tmp_path):
    model, given = network(name)
    plan = cp.plan(model, given, remove=HALF)
    plan.save(tmp_path / "plan")
    again = cp.Plan.load(tmp_path / "plan")
    assert again.kept == plan.kept
    expected = digest(cut(name)[2])
    assert digest(cp.apply(model, again, given).model) == expected
    assert digest(cp.apply(model, again).model) == expected  # inputs of the shapes that the plan wrote down


def test_a_plan_for_another_network_is_refused():
    model, given = network("conv")
    other, images = network("resnet")
    plan = cp.plan(model, given, remove=HALF)
    before = suite.values(other)
    with pytest.raises(CheckpointError, match=r"made for a network whose .* apply it to the network it was made for"):
        cp.apply(other, plan, images, inplace=True)
    assert suite.equal(suite.values(other), before)


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_nothing(name):
    model, given = network(name)
    whole = {site.name: site.units for site in cp.inspect(model, given).sites}
    small = cp.prune(model, given, units=whole)
    assert digest(small.model) == digest(model)
    assert suite.equal(call(small.model, given), call(model, given))
    assert small.parameters == small.dense_parameters


def test_the_configuration_of_the_result_is_its_own_and_whole():
    """What a configuration holds beside its fields, such as the implementation of attention, decides the outputs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=64, **sizes)).eval()
    given = {"input_ids": torch.randint(64, (2, 8))}
    small = cp.prune(model, given, units={"encoder.layer.*.intermediate.dense": 24}).model
    assert (model.config.intermediate_size, small.config.intermediate_size) == (48, 24)
    assert small.config._attn_implementation == model.config._attn_implementation
    padded = given | {"attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])}
    with torch.no_grad():
        all_of, part = small(**padded).last_hidden_state, small(given["input_ids"][1:, :5]).last_hidden_state
    assert torch.allclose(all_of[1, :5], part[0], atol=1e-5)


def test_where_nothing_is_cut_the_configuration_is_that_of_the_dense_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=64, **sizes)).eval()
    model.save_pretrained(tmp_path / "dense")
    small = cp.prune(model, {"input_ids": torch.randint(64, (2, 8))}, remove={"encoder.layer.0.*": 0.0})
    assert not small.plan.cuts
    small.save_pretrained(tmp_path / "small", tmp_path / "dense")
    opened = transformers.BertModel.from_pretrained(tmp_path / "small")
    assert digest(opened) == digest(model)


def test_a_tensor_that_is_shared_counts_once():
    """A tied table is one tensor: a fraction is of what there is."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(200, 8), nn.Linear(8, 64), nn.Linear(64, 8)
            self.head = nn.Linear(8, 200, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            x = self.table(ids)
            return self.head(x + self.down(torch.relu(self.up(x))))

    model = Tied().eval()
    small = cp.prune(model, torch.zeros(2, 4, dtype=torch.long), remove=0.2, prior="noise").model
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert 0.79 < after / before <= 0.8

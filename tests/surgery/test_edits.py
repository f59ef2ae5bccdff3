"""Take, Mix and Add against plain loops, wherever the units lie."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import seeded

from coreprune.maths.layer import Thin
from coreprune.model.site import Location, Reader
from coreprune.surgery import edits as module
from coreprune.surgery import mixing
from coreprune.surgery.edits import Add, Mix, Take, constant, edited

#: shape, location, units: rows, columns, channels of a convolution (in and out), a flattened convolution, a slice,
#: shuffled channels, stacked experts
PLACES = [
    ((4, 3), Location("w", 0), 4),
    ((3, 4), Location("w", 1), 4),
    ((4,), Location("w", 0), 4),
    ((4, 3, 2, 2), Location("w", 0), 4),
    ((3, 4, 2, 2), Location("w", 1), 4),
    ((3, 12), Location("w", 1, span=3), 4),
    ((3, 9), Location("w", 1, start=2), 4),
    ((15, 2), Location("w", 0, start=1, span=3), 4),
    ((2, 11, 2, 1), Location("w", 1, start=2, span=2), 4),
    ((9, 2), Location("w", 0, 0, 2, (0, 4, 1, 5, 8, 7, 2, 6)), 4),
    ((2, 3, 5), Location("w", 2, start=1), 4),
    ((2, 4, 3), Location("w", 1), 4),
]
places = pytest.mark.parametrize(("shape", "at", "units"), PLACES, ids=str)


def by_loops(value: torch.Tensor, axis: int, edits: list[Take | Mix]) -> torch.Tensor:
    """The result entry by entry; every entry is a slice of the tensor, in float64."""
    old = [value.select(axis, i).double() for i in range(value.shape[axis])]
    new = dict(enumerate(old))
    for edit in edits:
        units = edit.units or edit.matrix.shape[0] // edit.block
        lie = edit.at.entries(units).tolist()
        for entries in lie:
            for entry in entries:
                del new[entry]
        kept = edit.indices.tolist()
        if isinstance(edit, Take):
            for goal, unit in zip(sorted(kept), kept, strict=True):
                for to, entry in zip(lie[goal], lie[unit], strict=True):
                    new[to] = old[entry]
            continue
        share, B, T = edit.at.span // edit.block, edit.block, edit.matrix.double()
        if T.dim() == 1:
            B, share = 1, edit.at.span
            T = torch.zeros(units, len(kept)).double().index_put((edit.indices, torch.arange(len(kept))), T)
        for s, c, r in itertools.product(range(len(kept)), range(B), range(share)):
            new[lie[kept[s]][c * share + r]] = sum(
                T[j * B + b, s * B + c] * old[lie[j][b * share + r]] for j in range(units) for b in range(B)
            )
    return torch.stack([new[i] for i in sorted(new)], axis)


def random_(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


@places
@pytest.mark.parametrize("kept", [[0, 2], [3], [2, 0, 3], [0, 1, 2, 3]], ids=str)
def test_take_keeps_units_in_the_order_given(shape, at, units, kept):
    value = random_(*shape)
    take = Take(at, torch.tensor(kept), units)
    assert torch.equal(take(value), by_loops(value, at.axis, [take]))
    assert take(value).is_contiguous()


@places
@pytest.mark.parametrize("indices", [[0, 1], [1, 3], [0, 1, 2, 3]], ids=str)
def test_mix_is_the_product_with_T_in_the_places_of_the_kept_units(shape, at, units, indices):
    value = random_(*shape)
    for block in {1, at.span}:
        T = random_(units * block, len(indices) * block, seed=1)
        mix = Mix(at, T, torch.tensor(indices), units, block)
        torch.testing.assert_close(mix(value), by_loops(value, at.axis, [mix]), rtol=1e-13, atol=1e-13)
        assert mix(value).is_contiguous()


@places
def test_a_vector_scales_the_kept_units(shape, at, units):
    value = random_(*shape)
    mix = Mix(at, torch.tensor([2.0, -0.3], dtype=torch.float64), torch.tensor([1, 3]), units)
    torch.testing.assert_close(mix(value), by_loops(value, at.axis, [mix]), rtol=1e-15, atol=0)


@places
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_keeping_all_changes_no_bit(shape, at, units, dtype):
    value, every = random_(*shape, dtype=dtype), torch.arange(units)
    one = torch.ones(units, dtype=torch.float64)
    eye = torch.eye(units * at.span, dtype=torch.float64)
    for edit in (Take(at, every, units), Mix(at, one, every, units), Mix(at, eye, every, units, at.span)):
        assert torch.equal(edit(value), value)
        assert edit(value).data_ptr() != value.data_ptr()


@pytest.mark.parametrize("block", [1, 2, 3, 6])
def test_blocks_of_a_unit_are_mixed_on_their_own_and_shares_alike(block):
    """Two units of six entries each, which are (block, share)."""
    value = random_(5, 14)
    at = Location("w", 1, 1, 6)
    mix = Mix(at, random_(2 * block, block, seed=1), torch.tensor([1]), 2, block)
    torch.testing.assert_close(mix(value), by_loops(value, 1, [mix]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 3])
def test_several_sites_on_one_axis_speak_of_the_dense_tensor(rank):
    """A concatenation: what one site loses must not move what another one means."""
    value = random_(*[2, 20, 2][:rank] if rank > 1 else [20])
    axis = min(rank - 1, 1)
    edits = [
        Take(Location("w", axis, 9), torch.tensor([1, 2]), 4),
        Mix(Location("w", axis, 1), random_(3, 2, seed=1), torch.tensor([0, 2]), 3),
        Mix(Location("w", axis, 0, 2, (16, 4, 17, 5)), random_(2, 1, seed=2), torch.tensor([1]), 2),
        Take(Location("w", axis, 0, 1, (19, 7, 6)), torch.tensor([0, 2]), 3),
    ]
    expected = by_loops(value, axis, edits)
    assert expected.shape[axis] == 20 - 2 - 1 - 2 - 1
    for order in itertools.permutations(edits):
        torch.testing.assert_close(edited(order, {"w": value})["w"], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("together", [0, 2**16])
def test_matrices_of_one_size_are_mixed_with_at_once_and_do_the_same(axis, together, monkeypatch):
    """Some whose kept units stand for themselves, one of another size, and one that has no unit of its own."""
    monkeypatch.setattr(mixing, "TOGETHER", together)
    value = random_(*[4] * axis, 30, *[3] * (2 - axis))

    def made(start, n, kept, seed, own=True, block=1):
        T = random_(n * block, len(kept) * block, seed=seed)
        if own:
            T[(torch.tensor(kept)[:, None] * block + torch.arange(block)).flatten()] = torch.eye(T.shape[1]).double()
        return Mix(Location("w", axis, start, block), T, torch.tensor(kept), n, block)

    alike = [made(0, 5, [1, 3], 1), made(5, 5, [0, 4], 2), made(10, 5, [2, 3], 3)]
    others = [made(15, 4, [0, 1], 4), made(19, 2, [1], 5, block=2), made(23, 2, [0], 6, block=2)]
    for edits in (alike, [*others, *alike], [*alike, made(25, 5, [0, 2], 7, own=False)]):
        expected = by_loops(value, axis, edits)
        torch.testing.assert_close(edited(edits, {"w": value})["w"], expected, rtol=1e-12, atol=1e-12)


def test_axes_that_are_cut_alike_are_cut_each_on_its_own():
    """The same Takes on two vectors and on a matrix that is mixed along the other axis, and other units on a third."""
    kept, other = torch.tensor([1, 3]), torch.tensor([0, 2])
    T = random_(5, 2, seed=3)
    tensors = {"a": random_(9), "w": random_(9, 9, seed=1), "b": random_(9, seed=2), "c": random_(9, seed=4)}
    taking = [Take(Location(name, 0, 2), kept, 4) for name in "awb"]
    found = edited([*taking, Mix(Location("w", 1, 1), T, kept, 5), Take(Location("c", 0, 2), other, 4)], tensors)
    left = torch.tensor([0, 1, 3, 5, 6, 7, 8])
    for name in "ab":
        assert torch.equal(found[name], tensors[name][left])
    assert torch.equal(found["c"], tensors["c"][[0, 1, 2, 4, 6, 7, 8]])
    mixed = edited([Mix(Location("w", 1, 1), T, kept, 5)], {"w": tensors["w"][left]})["w"]
    assert torch.allclose(found["w"], mixed, rtol=1e-12)


def test_parts_of_a_fused_projection_belong_to_one_site():
    """Queries, keys and values of two of three heads."""
    qkv = torch.arange(18.0).reshape(18, 1)
    edits = [Take(Location("w", 0, start, 2), torch.tensor([0, 2]), 3) for start in (0, 6, 12)]
    assert edited(edits, {"w": qkv})["w"].flatten().tolist() == [0, 1, 4, 5, 6, 7, 10, 11, 12, 13, 16, 17]


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
@pytest.mark.parametrize("rank", [2, 4])
def test_edits_on_all_axes_in_pieces_of_any_size(chunk, rank, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    value = random_(*[6, 8, 3, 3][:rank])
    rows = [Take(Location("w", 0, 1), torch.tensor([0, 3, 4]), 5)]
    columns = [Mix(Location("w", 1, 0, 2), random_(3, 2, seed=1), torch.tensor([0, 1]), 3),
               Take(Location("w", 1, 6), torch.tensor([1]), 2)]  # fmt: skip
    expected = by_loops(by_loops(value, 1, columns), 0, rows)
    found = edited([*columns, *rows], {"w": value})["w"]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    both = [Mix(Location("w", 0), random_(6, 4, seed=2), torch.tensor([0, 1, 3, 5]))]
    expected = by_loops(by_loops(value, 1, columns), 0, both)
    found = edited([*columns, *both], {"w": value})["w"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    two = by_loops(by_loops(value, 0, rows), 1, [columns[1]])
    assert torch.equal(edited([*rows, columns[1]], {"w": value})["w"], two)


def test_mix_of_a_matrix_is_W_T():
    W, T = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 100.0]])
    assert Mix(Location("w", 1), T)(W).tolist() == [[31.0, 302.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_mix_computes_in_the_precision_of_T_and_rounds_once(dtype):
    W = random_(5, 40, dtype=dtype)
    T = random_(40, 7, seed=1)
    found = Mix(Location("w", 1), T)(W)
    assert found.dtype == dtype
    assert torch.equal(found, (T.T @ W.double().T).T.to(dtype))  # as it is computed, so that no bit differs


def test_mixes_of_two_axes_round_once():
    W, T, Q = random_(30, 40, dtype=torch.bfloat16), random_(40, 7, seed=1), random_(30, 5, seed=2)
    found = edited([Mix(Location("w", 1), T), Mix(Location("w", 0), Q)], {"w": W})["w"]
    assert torch.equal(found, (Q.T @ (W.double() @ T)).to(torch.bfloat16))


def test_constants_of_several_sites_round_once():
    """Each would be lost by itself."""
    bias, tiny = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 2.0**-9, dtype=torch.float64)
    assert edited([Add("b", tiny)], {"b": bias})["b"].item() == 1
    assert edited([Add("b", tiny)] * 4, {"b": bias})["b"].item() == 1 + 2**-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_results_in_double_are_not_rounded(dtype):
    tensors = {"w": random_(3, 4, dtype=dtype), "b": random_(3, seed=3, dtype=dtype), "n": torch.arange(4)}
    T, c = random_(4, 2, seed=1), random_(3, seed=2)
    edits = [Add("b", c), Mix(Location("w", 1), T), Take(Location("n", 0), torch.tensor([2]), 4)]
    found = edited(edits, tensors, dtype=torch.float64)
    assert torch.equal(found["w"], tensors["w"].double() @ T)
    assert torch.equal(found["b"], tensors["b"].double() + c)
    assert found["n"].dtype == torch.int64
    assert (
        edited([Take(Location("w", 1), torch.tensor([2]), 4)], tensors, dtype=torch.float64)["w"].dtype == torch.float64
    )


def test_add_to_a_bias_and_to_none():
    v = torch.tensor([0.5, -1.0], dtype=torch.float64)
    assert edited([Add("b", v)], {"b": torch.tensor([1.0, 1.0])})["b"].tolist() == [1.5, 0.0]
    made = edited([Add("b.bias", v)], {"b.weight": torch.ones(2, 2, dtype=torch.float16)})["b.bias"]
    assert made.tolist() == [0.5, -1.0]
    assert made.dtype == torch.float16


def test_a_constant_comes_before_the_units_of_the_bias_go_and_a_shift_after():
    """The constant has the dense bias's length, the shift that of what is left of one of two sites in it."""
    edits = [
        Add("b", torch.tensor([10.0, 20, 30, 40, 50])),
        Mix(Location("b", 0, 2), torch.eye(3)[:, :2], torch.tensor([0, 2]), 3),
        Take(Location("b", 0), torch.tensor([1]), 2),
        Add("b", torch.tensor([100.0, 200]), torch.tensor([2, 4])),
    ]
    assert edited(edits, {"b": torch.tensor([1.0, 2, 3, 4, 5])})["b"].tolist() == [22, 133, 244]


def test_add_keeps_the_dtype_of_the_bias():
    found = edited([Add("b", torch.ones(2, dtype=torch.float64))], {"b": torch.zeros(2, dtype=torch.bfloat16)})
    assert found["b"].dtype == torch.bfloat16


#: weight, units, block, outputs: linear, Conv1D of language models, convolution, flattened, start, order
READERS = [
    ((3, 4), Location("w", 1), 4, 1, 0),
    ((4, 3), Location("w", 0), 4, 1, 1),
    ((3, 4, 2, 2), Location("w", 1), 4, 1, 0),
    ((4, 3, 2), Location("w", 0), 4, 1, 1),
    ((3, 12), Location("w", 1, span=3), 4, 1, 0),
    ((3, 12), Location("w", 1, span=3), 4, 3, 0),
    ((2, 12), Location("w", 1, 2, 4), 2, 2, 0),
    ((3, 9), Location("w", 1, start=2), 4, 1, 0),
    ((2, 9, 2, 1), Location("w", 1, 0, 2, (0, 4, 1, 5, 8, 7, 2, 6)), 4, 2, 0),
]


@pytest.mark.parametrize(("shape", "at", "units", "block", "outputs"), READERS, ids=str)
@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_constant_is_the_reader_applied_to_a_constant(shape, at, units, block, outputs, sign, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    weight, t = random_(*shape), random_(units * block, seed=1)
    share, lie = at.span // block, at.entries(units).tolist()
    expected = []
    for o in range(shape[outputs]):
        rows = weight.select(outputs, o)
        axis = at.axis - (outputs < at.axis)
        where = itertools.product(range(units), range(block), range(share))
        values = [t[j * block + b] * rows.select(axis, lie[j][b * share + r]).sum() for j, b, r in where]
        expected.append(sign * float(sum(values)))
    reader = Reader(at, "b", sign, block, outputs)
    assert constant(weight, [reader], [t], [units]).tolist() == pytest.approx(expected, rel=1e-12)


def test_constants_of_several_sites_that_one_map_reads_add_up(monkeypatch):
    weight = random_(3, 9, 2)
    places = [Location("w", 1, 0), Location("w", 1, 0, 1, (8, 4, 6))]
    readers, ts = [Reader(at, "b") for at in places], [random_(4, seed=1), random_(3, seed=2)]
    alone = [constant(weight, [r], [t], [len(t)]) for r, t in zip(readers, ts, strict=True)]
    torch.testing.assert_close(constant(weight, readers, ts, [4, 3]), sum(alone), rtol=1e-12, atol=1e-12)


def test_edited_leaves_its_input_alone_and_returns_only_what_changed():
    tensors = {"w": torch.ones(3, 4), "v": torch.ones(2), "a.weight": torch.ones(2, 2, dtype=torch.float64)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    edits = [
        Take(Location("w", 1), torch.tensor([0]), 4),
        Mix(Location("w", 0), torch.full((3, 3), 2.0)),
        Add("a.bias", torch.ones(2)),
    ]
    changed = edited(edits, tensors)
    assert set(changed) == {"w", "a.bias"}
    assert set(tensors) == set(before)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert changed["w"].data_ptr() != tensors["w"].data_ptr()


def test_parameters_give_tensors_without_a_graph():
    found = edited([Mix(Location("w", 1), torch.ones(4, 1))], {"w": torch.nn.Parameter(torch.ones(3, 4))})["w"]
    assert not found.requires_grad


def test_a_bias_that_is_made_has_the_dtype_of_its_weight():
    changed = edited([Add("a.bias", torch.ones(2, dtype=torch.float64))], {"a.weight": torch.ones(2, 2).bfloat16()})
    assert changed["a.bias"].dtype == torch.bfloat16


def test_no_edits_change_nothing():
    assert edited([], {"w": torch.ones(2)}) == {}


@pytest.mark.parametrize(
    "edits",
    [
        [Take(Location("w", 0), torch.tensor([0]), 5)],
        [Take(Location("w", 0), torch.tensor([0]), 2), Mix(Location("w", 0, 1), torch.ones(2, 1))],
        [
            Take(Location("w", 0), torch.tensor([0]), 2),
            Add("w", torch.ones(3)),
            Take(Location("w", 0, 1), torch.tensor([0]), 2),
        ],
        [Take(Location("v", 0), torch.tensor([0]), 2)],
        [Take(Location("w", 0), torch.tensor([0, 1]), 2), Take(Location("w", 0, 1), torch.tensor([0, 1]), 2)],
    ],
    ids=["beyond the end", "twice", "gone before", "no tensor", "two that keep all"],
)
def test_edits_that_contradict_each_other_are_a_defect(edits):
    with pytest.raises(AssertionError):
        edited(edits, {"w": torch.ones(4)})


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block,share", [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("whole", [True, False], ids=["stand for themselves", "one does not"])
def test_units_that_stay_are_added_and_not_multiplied(axis, block, share, whole):
    """T W written out, where kept units have rows of the identity and where one of them has not."""
    n, kept = 6, torch.tensor([1, 2, 5])
    rows = (kept[:, None] * block + torch.arange(block)).flatten()
    T = torch.randn(n * block, 3 * block, dtype=torch.float64)
    T[rows] = torch.eye(3 * block, dtype=torch.float64)
    if not whole:
        T[rows[1], 0] = 0.25
    shape = [4, 4, 2]
    shape[axis] = n * block * share
    value = torch.randn(shape, dtype=torch.float64)
    found = Mix(Location("w", axis, 0, block * share), T, kept, n, block)(value)
    units = value.movedim(axis, 0).reshape(n * block, share, -1)
    expected = torch.einsum("ij,isr->jsr", T, units)
    torch.testing.assert_close(found.movedim(axis, 0).reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis,share", [(0, 1), (1, 1), (1, 3)])
def test_a_thin_matrix_mixes_as_it_does_written_out(axis, share):
    kept, gone = torch.tensor([1, 2, 5]), torch.tensor([0, 3, 4])
    T = Thin(gone, random_(3, 2), random_(2, 3, seed=1))
    shape = [4, 4, 2]
    shape[axis] = 6 * share
    value, at = random_(*shape, seed=2), Location("w", axis, 0, share)
    found, expected = (Mix(at, matrix, kept, 6)(value) for matrix in (T, T.dense()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_units_that_lie_in_an_order_of_their_own_are_taken_one_by_one():
    """As behind a channel shuffle: unit j owns entries order[2j] and order[2j + 1], wherever they are."""
    order = (5, 0, 3, 4, 1, 2)
    at = Location("w", 0, 0, 2, order)
    assert at.entries(3).tolist() == [[5, 0], [3, 4], [1, 2]]
    w = torch.arange(12.0).reshape(6, 2)
    small = edited([Take(at, torch.tensor([0, 2]), 3)], {"w": w})["w"]
    assert torch.equal(small, w[[0, 1, 2, 5]])

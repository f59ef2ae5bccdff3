"""Labels follow entries: whatever is done to a tensor is done to its labels, and classes are what couplings say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreprune.model.axes import Block, Labels, Value, groups_of_reshape, joined, reshaped, trimmed
from coreprune.model.walk import Walk

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def factorisations(draw, total):
    """A shape with so many entries, ones among them."""
    left, shape = total, []
    while left > 1:
        factor = draw(st.sampled_from([f for f in range(2, left + 1) if left % f == 0]))
        shape.append(factor)
        left //= factor
    for _ in range(draw(st.integers(0, 2))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return tuple(shape)


@st.composite
def two_shapes(draw):
    total = draw(st.sampled_from([1, 2, 6, 8, 12, 16, 24, 36, 60]))
    return draw(factorisations(total)), draw(factorisations(total))


def brute_groups(old, new):
    """Cut both lists of axes at every place where the products so far agree."""
    olds, news = ([a for a, size in enumerate(shape) if size != 1] for shape in (old, new))
    after_old = {math.prod(old[b] for b in olds[: i + 1]): i + 1 for i in range(len(olds))}
    after_new = {math.prod(new[b] for b in news[: i + 1]): i + 1 for i in range(len(news))}
    groups, i, j = [], 0, 0
    for product in sorted(after_old.keys() & after_new.keys()):
        groups.append((olds[i : after_old[product]], news[j : after_new[product]]))
        i, j = after_old[product], after_new[product]
    return groups


@given(two_shapes())
@quick
def test_groups_are_cut_wherever_products_agree(shapes):
    assert groups_of_reshape(*shapes) == brute_groups(*shapes)


@given(two_shapes())
@quick
def test_a_reshape_group_by_group_is_the_reshape(shapes):
    old, new = shapes
    entries = np.arange(math.prod(old)).reshape(old)
    for olds, news in groups_of_reshape(old, new):
        sub_old = [old[a] for a in olds]
        coordinates = np.indices(old)
        flat = np.ravel_multi_index([coordinates[a] for a in olds], sub_old).reshape(new)
        new_coordinates = np.indices(new)
        expected = np.ravel_multi_index([new_coordinates[a] for a in news], [new[a] for a in news])
        assert (flat == expected).all()
    assert entries.reshape(new).size == entries.size


def expanded(value):
    """The label of every entry of a tensor, for each block."""
    result = []
    for block in value.blocks:
        shape = [block.ids.shape[block.axes.index(a)] if a in block.axes else 1 for a in range(len(value.shape))]
        result.append(np.broadcast_to(block.ids.reshape(shape), value.shape))
    return result


@st.composite
def journeys(draw):
    """A shape, the axes that are labelled, and shapes and permutations to go through."""
    total = draw(st.sampled_from([6, 12, 16, 24, 36]))
    first = draw(factorisations(total))
    labelled = draw(st.integers(0, len(first) - 1))
    steps = []
    shape = first
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(len(shape))))
            steps.append(("permute", tuple(order)))
            shape = tuple(shape[a] for a in order)
        else:
            shape = draw(factorisations(total))
            steps.append(("reshape", shape))
    return first, labelled, steps


@given(journeys())
@quick
def test_labels_follow_their_entries_through_any_views(journey):
    shape, labelled, steps = journey
    labels = Labels()
    ids = labels.fresh(shape[labelled])
    block = trimmed(Block((labelled,), ids))
    value = Value(shape, () if block is None else (block,))
    truth = np.broadcast_to(ids.reshape([-1 if a == labelled else 1 for a in range(len(shape))]), shape)
    for what, how in steps:
        if what == "permute":
            truth = truth.transpose(how)
            where = {old: new for new, old in enumerate(how)}
            value = Value(tuple(truth.shape), tuple(b.moved(where) for b in value.blocks))
        else:
            truth = truth.reshape(how)
            value = reshaped(labels, value, how)
        assert value.shape == truth.shape
        if (truth == truth.flat[0]).all():
            assert value.blocks == ()
        else:
            (found,) = expanded(value)
            assert (found == truth).all()
            assert all(size > 1 for size in value.blocks[0].ids.shape)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
@quick
def test_trimming_leaves_every_label_where_it_is(sizes, data):
    shape = tuple(sizes)
    vary = [data.draw(st.booleans()) for _ in shape]
    ids = np.arange(math.prod(s if v else 1 for s, v in zip(shape, vary, strict=True)))
    ids = np.broadcast_to(ids.reshape([s if v else 1 for s, v in zip(shape, vary, strict=True)]), shape)
    left = trimmed(Block(tuple(range(len(shape))), ids))
    needed = tuple(a for a, s in enumerate(shape) if s > 1 and vary[a])
    if not needed:
        assert left is None
    else:
        assert left.axes == needed
        assert (expanded(Value(shape, (left,)))[0] == ids).all()


# ---------------------------------------------------------------- classes


@given(
    st.integers(1, 12), st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=4), max_size=5)
)
@quick
def test_classes_are_those_of_a_union_find(count, rounds):
    labels, parent = Labels(), list(range(count))
    labels.fresh(count)

    def root(a):
        return a if parent[a] == a else root(parent[a])

    for drawn in rounds:
        pairs = [(a % count, b % count) for a, b in drawn]
        labels.couple(np.array([a for a, _ in pairs], dtype=int), np.array([b for _, b in pairs], dtype=int))
        for a, b in pairs:
            parent[root(a)] = root(b)
        of, frozen = labels.classes()  # asked in between, it forgets nothing
        assert not frozen and len(of) == count
        assert all((of[a] == of[b]) == (root(a) == root(b)) for a in range(count) for b in range(count))


def partition(labels):
    of, frozen = labels.classes()
    return [np.flatnonzero(of == one).tolist() for one in dict.fromkeys(of.tolist())], frozen


def test_freezing_holds_a_class_and_tells_the_first_reason():
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.couple(a, b)
    labels.freeze(b[1:2], "the first reason")
    labels.freeze(a[1:], "another")
    of, frozen = labels.classes()
    assert frozen == {int(of[1]): "the first reason", int(of[2]): "another"}
    assert of[0] == of[3] and int(of[0]) not in frozen


def test_pinning_the_only_axis_freezes():
    labels = Labels()
    ids = labels.fresh(4)
    labels.pin(Block((1,), ids), 1, "because")
    assert partition(labels)[0] == [[0], [1], [2], [3]] and set(partition(labels)[1].values()) == {"because"}


@pytest.mark.parametrize("axis,units", [(1, [[0, 3], [1, 4], [2, 5]]), (2, [[0, 1, 2], [3, 4, 5]])])
def test_pinning_one_of_two_axes_couples_along_it(axis, units):
    labels = Labels()
    labels.pin(Block((1, 2), labels.fresh(6).reshape(2, 3)), axis, "because")
    assert partition(labels) == (units, {})


def test_couplings_broadcast():
    labels = Labels()
    rows = labels.fresh(6).reshape(3, 2)
    labels.couple(rows, rows[:, :1])
    assert partition(labels)[0] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 5, 3), (4, 2)])
def test_a_split_nobody_cares_about_runs_along_its_longest_axis(shape):
    labels = Labels()
    ids = labels.fresh(math.prod(shape)).reshape(shape)
    labels.split(ids)
    keep = int(np.argmax(shape))
    expected = sorted(sorted(part.ravel().tolist()) for part in np.moveaxis(ids, keep, 0))
    assert sorted(partition(labels)[0]) == expected


@pytest.mark.parametrize("pinned", [0, 1])
def test_a_split_with_a_pinned_axis_runs_along_the_other(pinned):
    labels = Labels()
    ids = labels.fresh(6).reshape(2, 3)
    labels.split(ids)
    labels.pin(Block((0, 1), ids), pinned, "because")
    assert len(partition(labels)[0]) == (3 if pinned == 0 else 2)


def test_the_same_split_twice_is_decided_once():
    labels = Labels()
    ids = labels.fresh(8).reshape(2, 4)
    labels.split(ids)
    labels.split(ids)
    assert len(partition(labels)[0]) == 4


def test_a_link_couples_where_units_run_along_the_shared_axis():
    labels = Labels()
    big, small = labels.fresh(6).reshape(2, 3), labels.fresh(3)
    labels.link(Block((1, 2), big), Block((2,), small))
    labels.pin(Block((1, 2), big), 1, "because")
    assert partition(labels) == ([[0, 3, 6], [1, 4, 7], [2, 5, 8]], {})


def test_a_link_holds_what_runs_along_another_axis_than_units_do():
    labels = Labels()
    big, small = labels.fresh(6).reshape(2, 3), labels.fresh(3)
    labels.link(Block((1, 2), big), Block((2,), small))
    labels.pin(Block((1, 2), big), 2, "because")
    of, frozen = labels.classes()
    assert set(frozen) == set(of[small].tolist()) and not set(frozen) & set(of[big].ravel().tolist())


def test_a_link_that_nothing_decides_holds_both():
    labels = Labels()
    big, small = labels.fresh(6).reshape(2, 3), labels.fresh(3)
    labels.link(Block((1, 2), big), Block((2,), small))
    of, frozen = labels.classes()
    assert set(frozen) == set(of.tolist())


# ---------------------------------------------------------------- values


def test_units_merged_with_other_units_are_held():
    labels = Labels()
    value = Value((2, 3), (Block((0,), labels.fresh(2)), Block((1,), labels.fresh(3))))
    reshaped(labels, value, (6,))
    of, frozen = labels.classes()
    assert set(frozen) == set(of.tolist()) and set(frozen.values()) == {"is merged with another axis of units"}


def test_units_beside_other_units_are_left_alone_by_a_reshape():
    labels = Labels()
    value = Value((2, 3, 4), (Block((0,), labels.fresh(2)), Block((1,), labels.fresh(3))))
    moved = reshaped(labels, value, (1, 2, 3, 2, 2))
    assert [block.axes for block in moved.blocks] == [(1,), (2,)] and not labels.classes()[1]


def test_tensors_without_entries_have_no_labels():
    labels = Labels()
    assert reshaped(labels, Value((0, 3), (Block((1,), labels.fresh(3)),)), (3, 0)).blocks == ()
    assert len(labels.classes()[1]) == 3


def test_what_is_joined_with_something_whole_is_held():
    labels = Labels()
    ids = labels.fresh(3)
    joined(labels, (2, 3), [(Value((2, 3), (Block((1,), ids),)), {0: 0, 1: 1}), (Value((3,)), {0: 1})])
    assert set(labels.classes()[1].values()) == {"is combined with a tensor that is not cut"}


def test_what_is_joined_with_something_broadcast_is_free():
    labels = Labels()
    ids = labels.fresh(3)
    blocks = joined(labels, (2, 3), [(Value((2, 3), (Block((1,), ids),)), {0: 0, 1: 1}), (Value((2, 1)), {0: 0})])
    assert not labels.classes()[1] and [block.axes for block in blocks] == [(1,)] and (blocks[0].ids == ids).all()


def test_blocks_over_crossing_axes_are_held():
    labels = Labels()
    a = Value((2, 3, 4), (Block((0, 1), labels.fresh(6).reshape(2, 3)),))
    b = Value((2, 3, 4), (Block((1, 2), labels.fresh(12).reshape(3, 4)),))
    same = {0: 0, 1: 1, 2: 2}
    joined(labels, (2, 3, 4), [(a, same), (b, same)])
    of, frozen = labels.classes()
    assert set(frozen) == set(of.tolist())


def test_a_block_loses_an_axis():
    block = Block((1, 3), np.arange(6).reshape(2, 3))
    assert block.without(3).axes == (1,) and block.without(3).ids.tolist() == [0, 3]
    assert block.without(1).ids.tolist() == [0, 1, 2] and Block((1,), np.arange(3)).without(1) is None
    turned = block.moved({1: 4, 3: 0})
    assert turned.axes == (0, 4) and turned.ids.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_renewed_labels_are_new_and_coupled():
    walk = Walk()
    value = walk.parameter("w", (3, 1))
    new = walk.renewed(value)
    assert not set(new.blocks[0].ids.tolist()) & set(value.blocks[0].ids.tolist())
    of, _ = walk.labels.classes()
    assert (of[new.blocks[0].ids] == of[value.blocks[0].ids]).all()
    assert walk.parameter("w", (3, 1)).blocks[0].ids is value.blocks[0].ids

"""The search for cyclic garbage while a network is cut."""

import gc
import weakref

import pytest
from torch import nn

import coreprune as cp
from coreprune.garbage import searched_less


class Knot:
    """Refers to itself, so that only the search frees it."""

    def __init__(self):
        self.own = self


def test_what_is_made_within_is_freed_within():
    with searched_less():
        one = weakref.ref(Knot())
        assert one() is not None
        gc.collect()
        assert one() is None


def test_what_was_there_waits_until_the_end():
    gc.disable()  # so that nothing else collects it
    try:
        one = weakref.ref(Knot())
        with searched_less():
            gc.collect()
            assert one() is not None
        gc.collect()
        assert one() is None
    finally:
        gc.enable()


def test_the_end_is_as_the_start_after_an_error_too():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    cp.prune(net, units={"0": 3})
    assert gc.get_freeze_count() == 0
    with pytest.raises(cp.CorepruneError):
        cp.prune(net, units={"0": 300})
    assert gc.get_freeze_count() == 0


def test_what_the_program_froze_stays_frozen_and_nothing_else_is():
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        later = [[] for _ in range(1000)]  # frozen, too, if the context froze once more
        with searched_less():
            # the count falls by itself where a frozen object goes out of use; it does not rise
            assert 0 < gc.get_freeze_count() <= frozen
        assert 0 < gc.get_freeze_count() <= frozen
        assert len(later) == 1000
    finally:
        gc.unfreeze()

"""Every network of the tables is cut by half: see `zoo.suite`."""

from __future__ import annotations

import pytest

from zoo import families, suite

pytestmark = pytest.mark.filterwarnings(r"ignore:The tensor attributes self\.lstm\._flat_weights:UserWarning")


@pytest.fixture(scope="session")
def loader():
    process = suite.Loader()
    yield process
    process.close()


@pytest.mark.parametrize("name", suite.NETS)
def test_cut_by_half(name, loader, tmp_path):
    if suite.NETS[name] in families.TABLE or name == "model-output":
        pytest.importorskip("transformers")
    row = suite.examine(name, tmp_path, loader)
    assert row.worst <= suite.TOLERANCE
    assert bool(row.sites) == (name not in suite.WHOLE)


def test_the_lists_name_networks_of_the_tables():
    assert set(suite.WHOLE) | set(suite.REFUSED) | set(suite.SITES) <= set(suite.NETS)
    without = {name for name, net in suite.NETS.items() if not hasattr(net, "expect")}
    assert without == set(suite.SITES) | (set(suite.WHOLE) - {"convnextv2"})

from __future__ import annotations

import gzip
import itertools

import pytest
import torch

from coreprune import demo
from coreprune.demo import run
from coreprune.demo.run import WIDTHS
from coreprune.errors import CheckpointError
from coreprune.maths.methods import METHODS
from coreprune.report.text import bytes_text


@pytest.fixture(scope="module")
def first():
    """The first rows, of the methods that this suite speaks about."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "METHODS", {name: METHODS[name] for name in ("sampling", "magnitude")})
        return list(itertools.islice(run.rows(0, kept.append), 3)), kept


def test_the_shipped_network_is_as_good_as_the_papers():
    images, labels = demo.test_images()
    with torch.no_grad():
        wrong = 100 * float((demo.lenet()(images).argmax(1) != labels).double().mean())
    assert wrong <= 2.16


def test_images_are_mnist():
    images, labels = demo.test_images()
    assert images.shape == (10_000, 784)
    assert (float(images.min()), float(images.max())) == (0, 1)
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(images.mean()) == pytest.approx(0.1325, abs=1e-3)


def test_dense_comes_first(first):
    dense = first[0][0]
    assert (dense.method, dense.widths, dense.params) == ("dense", "300-100", 266_610)
    assert dense.test_error_percent <= 2.16
    assert 0 <= dense.bytes - 4 * dense.params < 1000
    assert dense.data_used is False


def test_rows_are_what_the_issue_asks_for(first):
    types = {
        "method": str, "widths": str, "params": int, "bytes": int, "test_error_percent": float, "seconds": float,
        "prior": str, "data_used": bool,
    }  # fmt: skip
    for row in first[0]:
        body = row.to_json()
        assert list(body)[: len(types)] == list(types)
        assert all(type(body[name]) is kind for name, kind in types.items())


def test_a_row_describes_the_network_kept_for_it(first):
    (_, second, *_), kept = first
    one, two = WIDTHS[0]
    assert second.widths == f"{one}-{two}" == "150-50"
    assert second.params == 785 * one + (one + 1) * two + (two + 1) * 10
    images, labels = demo.test_images()
    with torch.no_grad():
        wrong = 100 * float((kept[0].model(images).argmax(1) != labels).double().mean())
    assert second.test_error_percent == pytest.approx(wrong, abs=0.006)


def test_widths_are_those_of_the_issue():
    assert WIDTHS == ((150, 50), (100, 35), (60, 20), (30, 100))


def test_idx_files(tmp_path):
    header = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")
    (tmp_path / "a.gz").write_bytes(gzip.compress(header + bytes(range(6))))
    assert demo.read_idx(tmp_path / "a.gz").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "raw",
    [b"plain text", gzip.compress(b""), gzip.compress(b"abcdefgh"), gzip.compress(b"\0\0\x08\x02" + bytes(8))[:-12],
     gzip.compress(b"\0\0\x08\x01" + (9).to_bytes(4, "big") + b"short")],
    ids=["text", "empty", "other", "cut", "short"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, raw):
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"a\.gz"):
        demo.read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_066_440, "1.07 MB"), (3e12, "3 TB")]
)
def test_bytes(count, text):
    assert bytes_text(count) == text

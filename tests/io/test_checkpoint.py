from __future__ import annotations

import errno

import pytest
import torch
from safetensors.torch import save_file

from coreprune.errors import CheckpointError
from coreprune.io import checkpoint
from coreprune.io.checkpoint import read_tensors, write_tensors

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64, torch.bool]


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    tensors = {str(d): (torch.arange(12).reshape(3, 4) % 2).to(d) for d in DTYPES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3)}
    write_tensors(tmp_path / "a", tensors)
    found = read_tensors(tmp_path / "a")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) and found[k].dtype == tensors[k].dtype for k in tensors)


def test_views_transposes_and_shared_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "same": base, "view": base[1:], "column": base[:, 1], "turned": base.T, "grad": base}
    tensors["grad"] = torch.nn.Parameter(base)
    write_tensors(tmp_path / "a", tensors)
    found = read_tensors(tmp_path / "a")
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert (tmp_path / "a").stat().st_size < 2000


def test_a_view_writes_only_what_it_shows(tmp_path):
    write_tensors(tmp_path / "a", {"v": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "a").stat().st_size < 5000


@pytest.mark.parametrize("length", range(0, 256, 8))
def test_every_length_of_header_is_read(tmp_path, length):
    """The first byte of the file is the header's length modulo 256, and means nothing else."""
    file = tmp_path / "a.safetensors"
    save_file({"x" * length + "y": torch.ones(2)}, file)
    assert [t.tolist() for t in read_tensors(file).values()] == [[1.0, 1.0]]


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        read_tensors(tmp_path / "nowhere")


def test_directory_in_place_of_a_file(tmp_path):
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_by_name(tmp_path, zipped):
    torch.save({"w": torch.ones(2)}, tmp_path / "m", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickle"):
        read_tensors(tmp_path / "m")


@pytest.mark.parametrize("cut", [0, 4, 8, 20, -1])
def test_a_cut_file_is_refused(tmp_path, cut):
    write_tensors(tmp_path / "a", {"w": torch.ones(50)})
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw[:cut])
    with pytest.raises(CheckpointError, match="safetensors"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    "raw", [b"\xff" * 8, b"\0" * 64, b"hello, this is text", (2**62).to_bytes(8, "little") + b"{}"], ids=str
)
def test_other_bytes_are_refused(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "a")


def test_full_disk(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_tensors(tmp_path / "a", {"w": torch.ones(1)})


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError):
        write_tensors(tmp_path / "no" / "a", {"w": torch.ones(1)})

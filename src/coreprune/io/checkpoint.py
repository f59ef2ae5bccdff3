"""Tensors on disk: safetensors only. A pickle is refused by its look, before anything is opened by it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coreprune.errors import CheckpointError

__all__ = ["headers", "read_tensors", "write_tensors"]

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}


def headers(file: Path) -> dict[str, tuple[list[int], int]]:
    """Shape and bits per entry of every tensor of a safetensors file, by name; no tensor is read.

    Raises:
        CheckpointError: it is not whole.
    """
    try:
        with safe_open(file, framework="pt") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
            return {name: (one.get_shape(), _BITS.get(one.get_dtype(), 8)) for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}): write or copy it again") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: no such file, a pickle, or not a valid safetensors file.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise CheckpointError(f"cannot read {file} ({error.strerror}): check the path") from error
    plausible = 0 < int.from_bytes(head, "little") <= file.stat().st_size - 8  # a header of that length fits
    if not plausible and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise CheckpointError(
            f"{file} is a pickle, which can run any code when it is opened, and was not opened: "
            "write its state dict anew, where you trust it, with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'net.safetensors'), and give that with "
            "--factory; of a pickled module save model.state_dict()"
        )
    if file.suffix in {".py", ".json"}:
        raise CheckpointError(
            f"{file} holds no weights: give a safetensors file, a Hugging Face directory, or module:function for the "
            "function that makes the network"
        )
    try:
        with safe_open(file, framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({error}): write or copy it again") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, each in memory of its own.

    Raises:
        CheckpointError: the file cannot be written.
    """
    whole = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors.items()}
    seen: dict[int, str] = {}
    for name, tensor in whole.items():  # the format forbids shared memory, and names both in a tie
        if (
            tensor.numel() and seen.setdefault(tensor.untyped_storage().data_ptr(), name) != name
        ) or tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
            whole[name] = tensor.clone()
    try:
        save_file(whole, str(path), metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path} ({error}): make room or choose another place") from error

"""Real data for the benchmarks: from a local folder, else downloaded with a checksum."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
from pathlib import Path

from torch import Tensor

from coreprune.demo import read_idx

#: set → (where the originals are, SHA-256 of each file's *content*, which does not depend on how it was zipped)
_FILES = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        },
    ),
    "fashion-mnist": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        {
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        },
    ),
}


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """The option --data, the folder that holds mnist/, fashion-mnist/ …"""
    default = Path(os.environ.get("COREPRUNE_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder of data sets (default: %(default)s)")


def locate(name: str, file: str, data: Path) -> Path:
    """The path of one file of a data set, fetched into the user's cache if it is not in `data`."""
    local = data / name / file
    if not local.exists():
        import pooch

        local = Path(pooch.retrieve(_FILES[name][0] + file, None, path=pooch.os_cache("coreprune") / name, fname=file))
    found = hashlib.sha256(gzip.decompress(local.read_bytes())).hexdigest()
    if found != _FILES[name][1][file]:
        raise SystemExit(f"{local} is not the {name} file it is named after: remove it and try again")
    return local


def images(name: str, part: str, data: Path) -> tuple[Tensor, Tensor]:
    """Images as (N, 784) in [0, 1] and labels as (N,), of part "train" or "t10k"."""
    x = read_idx(locate(name, f"{part}-images-idx3-ubyte.gz", data))
    y = read_idx(locate(name, f"{part}-labels-idx1-ubyte.gz", data))
    return x.flatten(1).float() / 255, y.long()

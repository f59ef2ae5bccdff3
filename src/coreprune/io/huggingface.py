"""Hugging Face directories: networks in, smaller networks out, as the usual loader of `transformers` opens them.

`transformers` is imported when it is needed and not before. Weights come from safetensors alone; code that lies
beside a model is never run.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import CheckpointError, CorepruneError, InvalidInputError, UnsupportedModelError
from coreprune.io.checkpoint import headers
from coreprune.io.configs import Followed, followed, governed
from coreprune.io.directory import new_directory

__all__ = ["Followed", "HuggingFace", "example_inputs", "followed", "governed", "is_directory", "load", "save",
           "weight_files"]  # fmt: skip

_TEXTS = {".json", ".txt", ".model", ".jinja", ".spm", ".bpe", ".tiktoken"}
_NOTICES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
#: not copied: what is written anew, and what would put the dense network's adapters on top
_OURS = {"config.json", "structure.json", "plan.json", "adapter_config.json"}


@dataclass(frozen=True)
class HuggingFace:
    """A network that was read from a directory.

    Attributes:
        model: in eval mode, of the class that the configuration names.
        config: its configuration.
        path: the directory.
        unused: names of stored tensors that the class does not have.
    """

    model: nn.Module
    config: Any
    path: Path
    unused: tuple[str, ...] = ()


def is_directory(path: str | Path) -> bool:
    """Whether a Hugging Face model lies there: a config.json that names an architecture, and safetensors."""
    place = Path(path)
    return any(place.glob("*.safetensors")) and bool({"model_type", "architectures"} & _stored(place).keys())


def load(path: str | Path) -> HuggingFace:
    """Read a network with the class of `transformers` that its configuration names, in the dtype it is stored in.

    Raises:
        CheckpointError: no such network, or one whose weights are incomplete, quantised or pickled.
        CorepruneError: `transformers` is not installed.
    """
    place = Path(path)
    stored = _stored(place)
    if not is_directory(place):
        lacks = "no *.safetensors" if stored else "no config.json that can be read"
        raise CheckpointError(
            f"{place} has {lacks}, so it is not a Hugging Face model: give a directory that "
            "model.save_pretrained has written (weights in pickles are not opened)"
        )
    if stored.get("quantization_config"):
        raise CheckpointError(f"{place} is quantised, and its units cannot be cut: save it in full precision first")
    for file in weight_files(place):
        headers(file)  # refuses one that is not whole
    transformers = _transformers()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(place, **options)
            chosen = _class_of(transformers, config)
            more = options if chosen is transformers.AutoModel else {"local_files_only": True}
            model, info = chosen.from_pretrained(
                place, config=config, use_safetensors=True, dtype="auto", output_loading_info=True, **more
            )
    except Exception as error:  # whatever the loader raises
        raise CheckpointError(
            f"{place} cannot be opened by transformers {transformers.__version__} ({_line(error)}): "
            "code that lies beside a model is never run; save it again with a class of transformers"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{place} has no {missing[0]}, which {type(model).__name__} needs ({len(missing)} tensors are missing): "
            "copy or save it again"
        )
    return HuggingFace(model.eval(), model.config, place, tuple(sorted(info["unexpected_keys"])))


def example_inputs(model: nn.Module, *, batch: int = 2, length: int = 16, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments for one forward pass, as the configuration says what the model takes.

    Args:
        model: of a class of `transformers`.
        batch: examples. length: tokens of each, if it has so many positions.
        seed: of the tokens, pixels and sounds.

    Raises:
        UnsupportedModelError: the model takes something else.
    """
    config = model.config
    accepted = set(inspect.signature(type(model).forward).parameters)
    names = [str(getattr(model, "main_input_name", ""))]
    if "return_loss" in accepted:  # two towers that are compared
        names = [name for name in ("input_ids", "pixel_values") if name in accepted]
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        names.append("decoder_input_ids")
    make = _Examples(model, batch, length, torch.Generator().manual_seed(seed))
    unknown = next((name for name in names if name not in accepted or not hasattr(make, name)), None)
    if unknown is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {unknown or 'unnamed inputs'}, which coreprune cannot make up: "
            "pass example_inputs as a dict of keyword arguments"
        )
    inputs: dict[str, Any] = {name: getattr(make, name)() for name in names}
    return inputs | ({"use_cache": False} if "use_cache" in accepted else {})


def save(
    path: str | Path,
    model: nn.Module,
    config: Any | None,
    source: str | Path | None = None,
    *,
    zeros: Mapping[str, tuple[int, ...]] | None = None,
    force: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a network as a directory that ``from_pretrained`` opens, whole or not at all.

    The weights are first put, strictly, into a fresh instance that the configuration makes; the written directory
    is then read back as far as shapes go.

    Args:
        path: directory to make. force: replace one that is there.
        model: the smaller network; not changed.
        config: what makes its shapes, see `followed`.
        source: the dense network's directory, whose tokenizer, preprocessor and generation files are copied.
        zeros: biases of the class that the network does not have, see `Followed`.
        also: writes what else belongs into the directory; called with the place before it appears.

    Raises:
        InvalidInputError: no configuration makes this network.
        CheckpointError: the directory exists, or cannot be written.
    """
    if config is None:
        raise InvalidInputError(
            "no configuration of transformers describes these widths, which differ from block to block: "
            "ask for one width per block with uniform=True, or for coreprune's own format with uneven=True"
        )
    transformers = _transformers()
    state = model.state_dict()
    some = next(iter(state.values()))
    state |= {name: torch.zeros(shape, dtype=some.dtype) for name, shape in (zeros or {}).items()}
    with _quiet(transformers):
        shell = _shell(type(model), config)
        try:
            shell.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise InvalidInputError(f"the configuration does not make this network ({_line(error)})") from None
        shell.tie_weights()
        if getattr(model, "generation_config", None) is not None:
            shell.generation_config = model.generation_config
        with new_directory(path, force=force) as draft:
            shell.save_pretrained(draft, max_shard_size="5GB")
            _copy(Path(source), draft) if source is not None else None
            again = _shell(type(model), type(config).from_pretrained(draft, local_files_only=True))
            shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
            if shapes != {name: tensor.shape for name, tensor in shell.state_dict().items()}:
                raise InvalidInputError("the configuration changes when it is written and read: use uneven=True")
            if also is not None:
                also(draft)
            folders = [one.name for one in draft.iterdir() if one.is_dir()]
        for name in folders:
            (Path(path) / name).chmod(Path(path).stat().st_mode)


class _Examples:
    """One method for each input that a model may take."""

    def __init__(self, model: nn.Module, batch: int, length: int, generator: torch.Generator) -> None:
        self.model, self.batch, self.length, self.generator = model, batch, length, generator
        self.config: Any = model.config

    def _numbers(self, *shape: int) -> Tensor:
        first = next(p for p in self.model.parameters() if p.is_floating_point())
        return torch.randn(self.batch, *shape, generator=self.generator).to(first.device, first.dtype)

    def _text(self, **options: bool) -> Any:
        """The configuration that has the vocabulary."""
        return self.config if hasattr(self.config, "vocab_size") else self.config.get_text_config(**options)

    def _tokens(self, config: Any) -> Tensor:
        """Ids that are no special tokens; the last is the end of the text, which some models look for."""
        size = int(config.vocab_size)
        given = (value for key, value in vars(config).items() if key.endswith(("token_id", "token_index")))
        special = {one for value in given for one in (value if isinstance(value, (list, tuple)) else (value,))}
        ends = getattr(config, "eos_token_id", None)
        end = ends[0] if isinstance(ends, (list, tuple)) and ends else ends
        plain = torch.tensor([i for i in range(size) if i not in special][:1000])
        room = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None) or 1000
        length = max(1, min(self.length, int(room) - 2))
        ids = plain[torch.randint(len(plain), (self.batch, length), generator=self.generator)]
        if isinstance(end, int) and 0 <= end < size:
            ids[:, -1] = end
        return ids.to(next(self.model.parameters()).device)

    def input_ids(self) -> Tensor:
        return self._tokens(self._text())

    def decoder_input_ids(self) -> Tensor:
        return self._tokens(self._text(decoder=True))

    def pixel_values(self) -> Tensor:
        config = next(
            (c for c in (getattr(self.config, part, None) for part in ("vision_config", "encoder")) if c), None
        )
        config = self.config if config is None or isinstance(config, dict) else config
        size = getattr(config, "image_size", None) or 224
        if isinstance(size, dict):
            size = [size["height"], size["width"]]
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return self._numbers(int(getattr(config, "num_channels", 3)), int(height), int(width))

    def input_features(self) -> Tensor:
        return self._numbers(int(self.config.num_mel_bins), 2 * int(self.config.max_source_positions))

    def input_values(self) -> Tensor:
        if hasattr(self.config, "num_mel_bins") and hasattr(self.config, "max_length"):
            return self._numbers(int(self.config.max_length), int(self.config.num_mel_bins))
        return self._numbers(4000)


def _shell(kind: type[nn.Module], config: Any) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return kind(config)


def _copy(source: Path, draft: Path) -> None:
    """Tokenizer, preprocessor and generation files as they are, in folders too; no weights, no code, no pickles."""
    folders = [source, *(one for one in source.iterdir() if one.is_dir() and not one.name.startswith("."))]
    for file in (file for folder in folders for file in folder.iterdir() if file.is_file()):
        where = file.relative_to(source)
        text = file.suffix in _TEXTS or file.name.startswith(_NOTICES)
        if text and str(where) not in _OURS and not file.name.endswith(".index.json"):
            (draft / where).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, draft / where)


def weight_files(place: Path) -> list[Path]:
    """The files of a network's weights: `model.safetensors`, or those that an index names, or all there are.

    Raises:
        CheckpointError: the index names a file that is not there.
    """
    whole, index = place / "model.safetensors", place / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        return sorted(place.glob("*.safetensors"))
    try:
        files = sorted({place / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error!r}): copy it again") from error
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None:
        raise CheckpointError(f"{missing} is missing, which {index.name} names: copy the directory again")
    return files


def _stored(place: Path) -> dict[str, Any]:
    """The config.json of a directory, or nothing."""
    try:
        found = json.loads((place / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_of(transformers: Any, config: Any) -> Any:
    """The class that a configuration names, if transformers has it."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise CorepruneError(
            f"Hugging Face models need transformers ({_line(error)}): pip install transformers"
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no advice from the loader."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""``coreprune finetune DENSE SMALL OUT``."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from coreprune import recovery
from coreprune.cli.bar import progress_bar
from coreprune.cli.common import Source, files, source_of, words
from coreprune.cli.foretold import foretold
from coreprune.cli.output import dumped, echo_perplexities, json_option, numbers_of, recorded
from coreprune.engine.distill import LOSSES
from coreprune.engine.inputs import PRIORS
from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.io import huggingface
from coreprune.io.checkpoint import write_tensors
from coreprune.io.directory import check_new, new_directory
from coreprune.io.sidecar import write_json
from coreprune.plan import Plan
from coreprune.priors.text import Text
from coreprune.reading import FORMAT, load, read_structure, state_of
from coreprune.report.card import card
from coreprune.report.text import prior_text, wrap
from coreprune.result import Pruned

__all__ = ["finetune"]


@click.command(short_help="Train a smaller network to agree with MODEL.")
@click.argument("model", metavar="DENSE", shell_complete=files)
@click.argument("small", shell_complete=files)
@click.argument("out", shell_complete=files)
@click.option("--factory", metavar="MODULE:NAME", help="Makes the network of a .safetensors file.")
@click.option("--input", "shape", metavar="SHAPE", help="Shape of one batch  [default: as when SMALL was cut]")
@click.option("--steps", type=int, default=500, show_default=True, help="Of training.")
@click.option("--batch", type=int, default=8, show_default=True, help="Inputs of a step.")
@click.option("--rate", type=float, default=1e-4, show_default=True, help="The highest learning rate.")
@click.option("--text", metavar="FILE", shell_complete=files, help="Train on a text file of yours.")
@click.option(
    "--prior",
    metavar="NAME",
    help=f"Of the inputs: auto, {', '.join(PRIORS)}, or several with +.",
    shell_complete=words("auto", *PRIORS),
)
@click.option(
    "--loss",
    default="auto",
    show_default=True,
    help=f"auto, {' or '.join(LOSSES)}.",
    shell_complete=words("auto", *LOSSES),
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every random choice.")
@click.option("--resume", is_flag=True, help="Go on from OUT.state, if a run was stopped.")
@click.option("--force", is_flag=True, help="Replace OUT, and begin again, if they are there.")
@json_option
def finetune(
    model: str,
    factory: str | None,
    shape: str | None,
    small: str,
    out: str,
    resume: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train SMALL, which prune wrote, to agree with DENSE, and write it to OUT.
    No labels are needed, and no data: inputs are drawn as for prune.

    \b
    Examples:
      coreprune finetune coreprune.demo:lenet small/ out/ --batch 64 --steps 1000
      coreprune finetune path/to/dense small/ better/ --steps 2000 --resume
    """
    check_new(out, force=force)
    source = source_of(model, factory, shape)
    structure = read_structure(small)
    hub = source.directory is not None and huggingface.is_directory(small)
    network = huggingface.load(small).model if hub else load(small, lambda: copy.deepcopy(source.network))
    state = _state(out, resume=resume, force=force)
    wish = recovery.Wish(
        source.example, prior=_prior(options), loss=options["loss"], steps=options["steps"], batch=options["batch"],
        rate=options["rate"], seed=options["seed"], keep=state,
    )  # fmt: skip
    with _told(state), progress_bar("distilling") as progress:
        wish = replace(wish, progress=progress)
        trained, facts = recovery.recovered(network, source.network, structure["recipe"], wish)
    structure["recipe"] = _recipe(structure, facts, source, trained)
    if hub:
        _write_hub(out, small, trained, structure, force)
    else:
        _write(out, small, trained, structure, force)
    shutil.rmtree(state, ignore_errors=True)
    if as_json:
        click.echo(dumped(numbers_of(out, source.directory).to_json() | {"distilled": facts}))
        return
    steps = f"{facts['steps']:,} steps of {facts['batch']} inputs"
    click.echo("\n".join(wrap(f"{steps}: {prior_text(facts)}")))
    click.echo(f"data used to train: {'yes' if facts['data_used'] else 'no'}")
    click.echo(f"loss: {facts['measured']}")
    click.echo(f"on {facts['held_out']} inputs held out: {facts['before']:.4g} -> {facts['after']:.4g}")
    if not facts["after"] < facts["before"]:
        click.echo("it did not fall: SMALL is better than OUT; give a lower --rate, or a larger --batch")
    echo_perplexities(structure["recipe"])
    click.echo(f"written to {out}")


def _prior(options: dict[str, Any]) -> Any:
    """What --prior and --text mean."""
    if options["text"] is None:
        return options["prior"] or "auto"
    if options["prior"] is not None:
        raise InvalidInputError("--prior and --text were given, which are priors each: give one of them")
    return Text(options["text"])


def _state(out: str, *, resume: bool, force: bool) -> Path:
    """Where the state of the run is kept, with nothing there that is not to be gone on from."""
    place = Path(out).with_name(Path(out).name + ".state")
    if (place / "state.json").exists() and not resume:
        if not force:
            raise CheckpointError(
                f"{place} holds a run that was stopped: give --resume to go on, or --force to begin again"
            )
        shutil.rmtree(place)
    return place


@contextmanager
def _told(state: Path) -> Iterator[None]:
    """Tell, when the run is stopped, that it can go on."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        if (state / "state.json").exists():
            click.echo(f"the run so far is kept in {state}: go on with --resume", err=True)
        raise


def _recipe(structure: dict[str, Any], facts: dict[str, Any], source: Source, trained: nn.Module) -> dict[str, Any]:
    """The recipe of the cut with how it was trained, and its perplexity measured anew if it had one."""
    size, recipe = structure["size"], recorded(Plan((), structure["recipe"], {})).recipe
    recipe = {**{key: value for key, value in recipe.items() if key != "perplexity"}, "distilled": facts}
    if "perplexity" not in structure["recipe"]:
        return recipe
    result = Pruned(trained, Plan((), recipe, {}), size["dense_parameters"], size["dense_bytes"])
    with progress_bar("measuring") as progress:
        return dict(foretold(source, result, None, progress).plan.recipe)


def _write_hub(out: str, small: str, trained: nn.Module, structure: dict[str, Any], force: bool) -> None:
    """Write the trained network as a directory that ``from_pretrained`` opens, with the small one's other files."""

    def also(place: Path) -> None:
        _write_structure(place, structure)
        (place / "README.md").write_text(card(structure, type(trained).__name__), encoding="utf-8")

    huggingface.save(out, trained, trained.config, small, force=force, also=also)


def _write(out: str, small: str, trained: nn.Module, structure: dict[str, Any], force: bool) -> None:
    """Write the trained network in coreprune's own format, whole or not at all."""
    state = state_of(trained, structure["changed"])
    turned = Path(small) / "turned.safetensors"
    with new_directory(out, force=force) as draft:
        write_tensors(draft / "model.safetensors", {name: state[name] for name in structure["tensors"]})
        if turned.exists():
            shutil.copyfile(turned, draft / turned.name)
        _write_structure(draft, structure)


def _write_structure(place: Path, structure: dict[str, Any]) -> None:
    body = {key: value for key, value in structure.items() if key not in {"kind", "version"}}
    write_json(place / "structure.json", "structure", structure.get("version", FORMAT), body)

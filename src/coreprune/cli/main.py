"""Entry point: ``coreprune COMMAND``. Exit code 0 done, 2 something the user can mend, 1 a defect (with traceback)."""

from __future__ import annotations

import sys

import click

import coreprune
from coreprune.cli import apply, demo, inspect, plan, prune, report, verify
from coreprune.errors import CorepruneError

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(coreprune.__version__, prog_name="coreprune")
def cli() -> None:
    """Make a trained PyTorch network smaller, without any of its data.

    MODEL is module:factory (a function or class that returns the network), a
    .safetensors file together with --factory module:factory, or a directory that
    transformers opens with from_pretrained.

    \b
    coreprune demo
    coreprune inspect coreprune.demo:lenet
    coreprune prune coreprune.demo:lenet small/ --remove 0.5
    """


for command in (demo.demo, inspect.inspect, plan.plan, apply.apply, prune.prune, verify.verify, report.report):
    cli.add_command(command)


def main() -> None:
    """Run, and turn everything the user can mend into one line and exit code 2."""
    try:
        cli(sys.argv[1:], standalone_mode=False, obj=tuple(sys.argv[1:]))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped: nothing half-written is left", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except CorepruneError as error:
        click.echo(f"coreprune: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

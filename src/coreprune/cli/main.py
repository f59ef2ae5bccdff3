"""Entry point: ``coreprune COMMAND``. Exit code 0 done, 2 something the user can mend, 1 a defect (with traceback)."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import click

import coreprune
from coreprune.cli import apply, compare, demo, finetune, info, inspect, plan, prune, report, verify
from coreprune.cli.log import add_log_options
from coreprune.cli.spoken import spoken
from coreprune.errors import CorepruneError
from coreprune.report.text import wrap

__all__ = ["cli", "main"]

STOPPED = "stopped: nothing half-written is left"
PATIENCE = 5.0  # seconds after a Ctrl-C in which another is not heard


class _InOrder(click.Group):
    """A group that lists its commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, first to last."""
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="\b\nExamples: COMMAND -h. Exit codes: 0 done, 1 defect, 2 mend it, 130 stopped.\n"
    'Completion: eval "$(_COREPRUNE_COMPLETE=bash_source coreprune)" (or zsh, fish)',
)
@click.version_option(coreprune.__version__, prog_name="coreprune")
def cli() -> None:
    """Make a trained PyTorch network smaller, without its data. MODEL is
    module:factory, a .safetensors file with --factory, or a transformers model.
    """


for command in (
    demo.demo, inspect.inspect, plan.plan, apply.apply, prune.prune, finetune.finetune, verify.verify, report.report,
    compare.compare, info.info,
):  # fmt: skip
    add_log_options(command)
    cli.add_command(command)


class _Terminated(BaseException):
    """The process was asked to end."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


class _Interrupted:
    """Stops the work at the first Ctrl-C, and lets what tidies up end before it listens to another."""

    def __init__(self) -> None:
        self._last = -PATIENCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            raise KeyboardInterrupt


def _said(message: str) -> str:
    """A sentence as lines of the terminal, and as one line where it goes elsewhere."""
    return "\n".join(wrap(message)) if sys.stderr.isatty() else message


def main() -> None:
    """Run, and turn everything the user can mend into one line and exit code 2."""
    first = threading.current_thread() is threading.main_thread()
    handlers: list[tuple[int, Callable[[int, FrameType | None], None]]] = [(signal.SIGTERM, _terminate)]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not where it is to be ignored
        handlers.append((signal.SIGINT, _Interrupted()))
    before = [(number, signal.signal(number, handler)) for number, handler in handlers] if first else []
    try:
        cli(sys.argv[1:], standalone_mode=False, obj=tuple(sys.argv[1:]))
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo(STOPPED, err=True)
        sys.exit(130)
    except _Terminated:
        click.echo(STOPPED, err=True)
        sys.exit(143)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except CorepruneError as error:
        click.echo(_said(f"coreprune: {spoken(str(error))}"), err=True)
        sys.exit(2)
    finally:
        for number, handler in before:
            signal.signal(number, handler)


if __name__ == "__main__":
    main()

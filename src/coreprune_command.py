"""The way into ``coreprune COMMAND``: Ctrl-C stops it in one line during the imports too, which take a second or two.

It lies beside the package, as importing anything out of a package imports the package first.
"""

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Import the commands and run the one that was asked for."""
    try:
        from coreprune.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("stopped: nothing was begun\n")
        sys.exit(130)
    try:
        run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: only the interpreter has to end

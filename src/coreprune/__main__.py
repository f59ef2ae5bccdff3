"""``python -m coreprune COMMAND``."""

from coreprune.cli.main import main

main()

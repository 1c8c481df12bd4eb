"""``python -m abliterate``."""

import sys

from abliterate.terminal.streams import prepare


def main() -> None:
    """Entry point of the console script."""
    prepare()
    from abliterate.cli.main import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()

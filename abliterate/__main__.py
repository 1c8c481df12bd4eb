"""``python -m abliterate``."""

import sys


def main() -> None:
    """Entry point of the console script."""
    from abliterate.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()

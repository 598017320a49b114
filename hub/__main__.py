"""Entry point of `hcp-hub` (`python -m hub`)."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    from hub.cli import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())

"""cdam-med, the command: parses, calls, prints. Heavy imports happen inside the commands."""

from cdam_med.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app()

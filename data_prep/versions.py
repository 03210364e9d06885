"""Versions of installed packages, for records."""

from importlib import metadata


def version_of(distribution: str) -> str:
    """Return the version of an installed distribution, or say that it isn't installed.

    Parameters
    ----------
    distribution
        Its name, e.g. ``"cdam-med"``.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed (run from its source tree)"

"""The command line `infnerf-tiles`."""

from infnerf_tiles.cli.app import main

__all__ = ["main"]

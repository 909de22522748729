"""`python -m infnerf_tiles` is the same as `infnerf-tiles`."""

from infnerf_tiles.cli import main

main(prog_name="infnerf-tiles")

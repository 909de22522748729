"""What `build` tells of the photos: those left out, and what the others see of each region."""

from typing import TYPE_CHECKING

from rich.console import RenderableType

from infnerf_tiles.cli.app import DATA_ERROR
from infnerf_tiles.cli.terminal import Terminal, table

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.coverage import Coverage

_MAX_ROWS = 20
_MAX_NAMED = 5


def tell_rejected(terminal: Terminal, rejected: tuple[tuple[str, str], ...]) -> None:
    """Every photo (name, reason) that is not used; only the first ones unless -v."""
    shown = rejected if terminal.verbosity > 0 else rejected[:_MAX_ROWS]
    for name, reason in shown:
        terminal.say(f"left out: {name}: {reason}")
    if rest := len(rejected) - len(shown):
        terminal.say(f"left out: {rest} more photos; -v lists all")


def coverage_tables(coverage: "Coverage") -> list[RenderableType]:
    """The regions, what is seen least first: that needs a look."""
    regions = sorted(coverage.regions, key=lambda region: (region.photos, region.treelet))
    if not regions:
        return []
    title = f"coverage of the {len(regions):,} regions of the finest band"
    title += ", least first" if len(regions) > _MAX_ROWS else ""
    rows = [
        (r.treelet, r.photos, r.pixels, r.points, "–" if r.gsd is None else f"{r.gsd:.3g}") for r in regions[:_MAX_ROWS]
    ]
    return [table(title, ("region", "photos", "pixels", "points", "GSD reached"), rows)]


def tell_coverage(terminal: Terminal, coverage: "Coverage") -> int:
    """What is not seen well enough; the exit code, which is not 0 if a region is lost."""
    for names, what in (
        ([region.treelet for region in coverage.weak], "regions are seen by fewer than 3 photos"),
        (coverage.blind_photos, "training photos see no region"),
    ):
        if names:
            more = ", ..." if len(names) > _MAX_NAMED else ""
            terminal.say(f"warning: {len(names):,} {what}: {', '.join(names[:_MAX_NAMED])}{more}")
    if coverage.lost:
        first = ", ".join(region.treelet for region in coverage.lost[:_MAX_NAMED])
        terminal.error(
            f"{len(coverage.lost):,} regions are seen by no training photo and cannot be trained: {first}; add photos "
            "of them, or leave them out with --bounds"
        )
        return DATA_ERROR
    return 0

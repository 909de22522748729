"""`plan`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from infnerf_tiles.cli.app import DATA_ERROR, command
from infnerf_tiles.cli.options import bounds_of, budget_options, settings_options
from infnerf_tiles.cli.terminal import Terminal, facts_table, size_text
from infnerf_tiles.settings import load_settings

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.plan import Plan

_MAX_ROWS = 20


@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the photos, if it is not DATA's own."
)
@click.option(
    "--bounds", callback=bounds_of, metavar="x,y,z,X,Y,Z", help="Box that the octree has to hold; default: as build."
)
@click.option("--no-photos", is_flag=True, help="Go by poses and points alone, without opening a photo.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Processor threads; default: all cores.")
@budget_options
@settings_options
def plan(
    terminal: Terminal,
    data: Path,
    images: Path | None,
    bounds: tuple[float, ...] | None,
    no_photos: bool,
    threads: int | None,
    ram: int | None,
    vram: int | None,
    scratch: int | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Tell what build and train would take for the photos of DATA, before anything is written.

    Bytes, files and peaks are upper bounds; the time is rough, from a few training steps on this machine. Exit code 4
    if a budget cannot hold, with the nearest that would; 3 if a region is seen by no photo.

    \b
    Examples:
      infnerf-tiles plan survey
      infnerf-tiles plan survey --ram 8GiB --scratch 200GiB --config city
      infnerf-tiles plan survey --json --set data.downscale=2
    """
    from infnerf_tiles.pipelines import plan as pipeline

    found = pipeline.plan(
        data, load_settings(config, overrides), images=images, bounds=bounds,
        budgets=pipeline.Budgets(ram=ram, vram=vram, scratch=scratch), threads=threads, check_photos=not no_photos,
    )  # fmt: skip
    for name, reason in found.rejected[: None if terminal.verbosity > 0 else _MAX_ROWS]:
        terminal.say(f"left out: {name}: {reason}")
    if (rest := len(found.rejected) - _MAX_ROWS) > 0 and terminal.verbosity <= 0:
        terminal.say(f"left out: {rest} more photos; -v lists all")
    terminal.result({"dataset": str(data), **found.to_json()}, *_tables(data, found))
    if found.lost_regions:
        terminal.error(f"{len(found.lost_regions):,} regions are seen by no training photo; see build --coverage-map")
        return DATA_ERROR
    return 0


def _tables(data: Path, found: "Plan") -> list[RenderableType]:
    minutes, seconds = divmod(int(found.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    origin = ", ".join(f"{value:.6g}" for value in found.root_origin)
    partition = {
        "photos, of them for testing": f"{found.photos:,}, {found.test_photos:,}",
        "photos with masks": f"{found.masked_photos:,} of {found.photos:,}",
        "left out": len(found.rejected),
        "sparse points, outside the bounds": f"{found.points:,}, {found.points_outside:,}",
        "bounds": f"a cube of {found.root_edge:.4g} from ({origin})",
        "finest GSD": f"{found.gsd_finest:.4g}",
        "nodes per level": " ".join(f"{count:,}" for count in found.nodes_per_level),
        "nodes with growth, at most": found.node_limit,
        "treelets per band": " ".join(f"{count:,}" for count in found.treelets_per_band),
        "treelet height, largest treelet": f"{found.treelet_height} levels, {found.largest_treelet:,} nodes",
        "regions with fewer than 3 photos": found.weak_regions,
        "photos that see nothing": found.blind_photos,
    }
    sizes = {
        "store": f"{size_text(found.store_bytes)} in {found.store_files:,} files",
        "scratch": size_text(found.scratch_bytes),
        "pixels of the photos": found.photo_pixels,
        "of all treelets, of the largest": f"{found.treelet_pixels:,}, {found.largest_treelet_pixels:,}",
        "memory of one process": f"{size_text(found.ram_bytes)} ({found.worst_task})",
        "memory of the CUDA device": size_text(found.vram_bytes) if found.vram_bytes else "– (none here)",
        "pixels in memory": size_text(found.pixel_bytes) if found.pixel_bytes else "all of a treelet's",
        "workers that this machine's memory holds": found.workers_that_fit,
        "time, roughly": f"{hours}:{minutes:02}:{seconds:02} (one treelet after the other on this machine)",
    }
    return [facts_table(f"plan for {data}", partition), facts_table("at most", sizes)]


plan_command = command("plan", "Tell what build and train would take, before anything is written.")(plan)

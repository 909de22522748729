"""`build --add`."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from infnerf_tiles.cli.coverage import coverage_tables, tell_coverage, tell_rejected
from infnerf_tiles.cli.terminal import Terminal, facts_table

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.addition import AdditionReport

_MAX_NAMED = 8
_NOTABLE_LEVELS = 0.25


def refuse_with_add(options: Mapping[str, Any]) -> None:
    """A usage error if options (name -> value) were given that were fixed when the scene was built."""
    given = [name for name, value in options.items() if value]
    if given:
        raise click.UsageError(
            f"--add: expected no {', '.join(given)}: settings, bounds and reference system are the scene's own"
        )


def add_to_scene(terminal: Terminal, data: Path, scene: str, images: Path | None, coverage_map: Path | None) -> int:
    """Add the photos of DATA to the scene and tell what came of it; the exit code."""
    from infnerf_tiles.pipelines.addition import add_photos

    report = add_photos(data, scene, images=images, coverage_map=coverage_map)
    tell_rejected(terminal, report.rejected)
    terminal.result({"scene": scene, **report.to_json()}, *_tables(scene, report))
    if coverage_map is not None:
        terminal.say(f"coverage map: {coverage_map}")
    if report.marked:
        more = ", ..." if len(report.marked) > _MAX_NAMED else ""
        terminal.say(f"to be trained again: {', '.join(report.marked[:_MAX_NAMED])}{more}")
    if report.finer > _NOTABLE_LEVELS:
        terminal.say(
            f"warning: the new photos are {report.finer:.1f} levels finer than the octree may become, which was fixed "
            "at build; that detail is not kept"
        )
    code = tell_coverage(terminal, report.coverage)
    if report.waiting:
        if not code:
            terminal.say(f"next: infnerf-tiles train {quote(scene)}")
    elif not report.new_photos:
        terminal.say("nothing new: the scene is as it was")
    return code


def _tables(scene: str, report: "AdditionReport") -> list[RenderableType]:
    facts = {
        "photos": report.photos,
        "of them for testing": report.test_photos,
        "new photos": report.new_photos,
        "new ones for testing": report.new_test_photos,
        "left out": len(report.rejected),
        "sparse points": report.points,
        "of them outside the bounds": report.points_outside,
        "new nodes": report.new_nodes,
        "new treelets": report.new_treelets,
        "treelets to be trained again": len(report.marked),
        "trained treelets kept": report.kept,
        "treelets that the next training trains": report.waiting,
    }
    return [facts_table(f"scene {scene}", facts), *coverage_tables(report.coverage)]

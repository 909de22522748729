"""`eval` and `render`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.options import bytes_of, scene_argument
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, table

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.evaluate import EvalReport, LevelScore

_MAX_REGIONS = 20

_budget_option = click.option(
    "--memory-budget",
    metavar="BYTES",
    callback=bytes_of,
    help="Memory for the nodes that are drawn from, such as 500MB or 2GiB; the pictures are the same with any.",
)
_bias_option = click.option(
    "--lod-bias",
    type=click.FloatRange(-18.0, 4.0),
    default=0.0,
    metavar="LEVELS",
    help="Added to the level of detail that a pixel asks for; negative is coarser and faster.",
)
_threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Processor threads; default: all cores."
)


@scene_argument
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set is now, if moved since build."
)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR", help="Where the photos are now, if not in the data set."
)
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    default="test",
    help="Score the held-out photos (the default) or those trained on.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Score only so many photos, evenly chosen; default: all."
)
@_bias_option
@_budget_option
@_threads_option
def evaluate(
    terminal: Terminal,
    scene: str,
    data: Path | None,
    images: Path | None,
    split: str,
    limit: int | None,
    lod_bias: float,
    memory_budget: int | None,
    threads: int | None,
) -> None:
    """Compare pictures of SCENE with photos: PSNR and SSIM per pyramid level and per region.

    PSNR is the mean over photos of each photo's PSNR, sRGB in [0, 1], unmasked pixels. "Plain" takes the mean colour
    transform of the training photos; "half" fits one to a photo's left half and scores its right half. Pyramid level p
    is the photo reduced by 2^p.

    \b
    Examples:
      infnerf-tiles eval city.zarr
      infnerf-tiles eval city.zarr --limit 5 --json
      infnerf-tiles eval city.zarr --data /new/place/of/the/photos
    """
    from infnerf_tiles.pipelines import evaluate as pipeline

    with terminal.progress() as bars:
        bar = bars.add_task("pictures", total=None)
        report = pipeline.evaluate(
            scene,
            data=None if data is None else str(data),
            images=None if images is None else str(images),
            split="train" if split == "train" else "test",
            limit=limit,
            lod_bias=lod_bias,
            memory_budget=memory_budget,
            threads=threads,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    terminal.result({"scene": scene, **report.to_json()}, *_eval_tables(report))


def _eval_tables(report: "EvalReport") -> list[RenderableType]:
    tables = [
        facts_table(f"{report.images} {report.split} photos", {"seconds": f"{report.seconds:.1f}"}),
        level_table(report.levels),
    ]
    if report.regions:
        worst = sorted(report.regions, key=lambda region: region.psnr)[:_MAX_REGIONS]
        title = f"regions: the {_MAX_REGIONS} of the lowest PSNR" if len(report.regions) > _MAX_REGIONS else "regions"
        rows = [(region.treelet, region.pixels, decibel(region.psnr)) for region in worst]
        tables.append(table(title, ("region", "pixels", "PSNR"), rows))
    strips = [(s.where, s.pixels, _ratio(s.error_ratio), _ratio(s.gradient_ratio)) for s in report.strips]
    tables.append(table("seams: surface pixels near faces", ("where", "pixels", "error", "gradients"), strips))
    return tables


def level_table(levels: "tuple[LevelScore, ...]") -> RenderableType:
    """Scores per pyramid level."""
    rows = [(s.pyramid, s.images, decibel(s.psnr), decibel(s.psnr_half), _ratio(s.ssim)) for s in levels]
    return table("per pyramid level", ("pyramid level", "photos", "PSNR plain", "PSNR half", "SSIM"), rows)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


eval_command = command("eval", "Score pictures of a scene against held-out photos.")(evaluate)

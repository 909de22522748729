"""`eval` and `render`."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.changes import changed_settings
from infnerf_tiles.cli.options import FiniteRange, bytes_of, device_option, scene_argument, settings_options, size_of
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, size_text, table

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.evaluate import EvalReport, LevelScore
    from infnerf_tiles.pipelines.render import RenderReport
    from infnerf_tiles.rendering.renderer import DeviceChoice
    from infnerf_tiles.rendering.sequence import DepthFormat

_MAX_REGIONS = 20
_EXPOSURES = 2.0  # dB between the two figures, from which a reader is told what each is about
_DEFAULT_PATH = "orbit"

_budget_option = click.option(
    "--memory-budget",
    metavar="BYTES",
    callback=bytes_of,
    help="Memory for the nodes that are drawn from, such as 500MB or 2GiB; the pictures are the same with any.",
)
_bias_option = click.option(
    "--lod-bias",
    type=FiniteRange(-18.0, 4.0),
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
@device_option
@settings_options
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
    device: "DeviceChoice | None",
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Compare pictures of SCENE with photos: PSNR and SSIM per pyramid level and per region.

    PSNR is the mean over photos of each photo's PSNR, sRGB in [0, 1], unmasked pixels. "Plain" takes the mean colour
    transform of the training photos; "half" fits one to a photo's left half and scores its right half. Regions and
    seams take one fitted to each whole photo. Pyramid level p is the photo reduced by 2^p. --config and --set change
    settings of the section rendering, for this call.

    \b
    Examples:
      infnerf-tiles eval city.zarr
      infnerf-tiles eval city.zarr --limit 5 --json
      infnerf-tiles eval city.zarr --data /new/place/of/the/photos
    """
    from infnerf_tiles.pipelines import evaluate as pipeline

    settings = changed_settings("eval", scene, "rendering", config, overrides)
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
            device=device,
            settings=settings,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    terminal.result({"scene": scene, **report.to_json()}, *_eval_tables(report))
    first = report.levels[0]
    if first.psnr is not None and first.psnr_half is not None and first.psnr_half - first.psnr > _EXPOSURES:
        terminal.say(
            "these photos differ in exposure from the average one, which is what 'plain' compares with; 'half' tells "
            "how much of the place is there"
        )


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
    title = "seams: surface pixels at faces, against those beside"
    tables.append(table(title, ("where", "pixels", "error", "gradients"), strips))
    return tables


def level_table(levels: "tuple[LevelScore, ...]") -> RenderableType:
    """Scores per pyramid level."""
    rows = [
        (s.pyramid, s.images, decibel(s.psnr), decibel(s.psnr_half), _ratio(s.ssim), _ratio(s.ssim_half))
        for s in levels
    ]
    names = ("pyramid level", "photos", "PSNR plain", "PSNR half", "SSIM plain", "SSIM half")
    return table("per pyramid level", names, rows)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


@scene_argument
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="A name in .mp4 is a film, in .png or .jpg one picture, one without a suffix a folder of numbered PNGs.",
)
@click.option(
    "--path",
    metavar="KIND|FILE",
    help="Camera path: orbit (the default), spiral, flythrough, interpolate (from photo to photo), dataset (the poses "
    "of the photos), or a JSON file: a path of this program or of nerfstudio, or a transforms.json in the scene's "
    "world frame.",
)
@click.option("--photo", metavar="NAME", help="Draw what the camera of this photo saw, instead of a path.")
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    metavar="N",
    help="Frames to draw; default: 1 for a picture, as many as photos for dataset, as a file says, else 120.",
)
@click.option(
    "--fps",
    type=FiniteRange(0.1, 1000.0),
    metavar="N",
    help="Frames per second of a film; default: as a path file says, else 30.",
)
@click.option("--size", metavar="WxH", callback=size_of, help="Size of the pictures in pixels; default: as the photos.")
@click.option("--depth", is_flag=True, help="Also write the depth, as colours, beside OUT: OUT_depth.")
@click.option(
    "--depth-format",
    type=click.Choice(["colours", "npy", "tiff"]),
    help="Depth as colours (the default), or as float32 distances in world units for programs; implies --depth.",
)
@click.option("--alpha", is_flag=True, help="Also write the opacity, as grey, beside OUT: OUT_alpha.")
@click.option("--levels", is_flag=True, help="Also write a heat map of the levels of detail beside OUT: OUT_levels.")
@click.option(
    "--appearance",
    default="mean",
    metavar="PHOTO|mean|none",
    help="Colours as in a photo, as in the mean of all photos (the default), or without a colour transform.",
)
@_bias_option
@_budget_option
@_threads_option
@device_option
@settings_options
def render(
    terminal: Terminal,
    scene: str,
    output: Path,
    path: str | None,
    photo: str | None,
    frames: int | None,
    fps: float | None,
    size: tuple[int, int] | None,
    depth: bool,
    depth_format: "DepthFormat | None",
    alpha: bool,
    levels: bool,
    appearance: str,
    lod_bias: float,
    memory_budget: int | None,
    threads: int | None,
    device: "DeviceChoice | None",
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Draw pictures or a film of SCENE, reading only the nodes that each picture needs.

    The photos are not needed. SCENE may be a folder, a .zip, or an address (https://, s3://, gs://, az://). A folder of
    frames that was interrupted goes on with the same command; other frames drawn into it before are deleted, and a
    folder with other files is refused. --config and --set change settings of the section rendering, for this call.

    \b
    Examples:
      infnerf-tiles render city.zarr -o city.mp4
      infnerf-tiles render city.zarr -o frames --path spiral --frames 240 --size 1280x720 --depth --levels
      infnerf-tiles render city.zarr -o view.png --photo photo_0008.jpg --memory-budget 200MB
      infnerf-tiles render city.zarr -o draft.mp4 --path flythrough --lod-bias -2 --set rendering.step_size=2
    """
    from infnerf_tiles.pipelines import render as pipeline

    if photo is not None and path is not None:
        raise click.UsageError("--photo and --path: expected one of them, got both")
    options = pipeline.RenderOptions(
        output=output,
        path=path or _DEFAULT_PATH,
        photo=photo,
        frames=frames,
        size=size,
        fps=fps,
        depth=depth or depth_format is not None,
        depth_format=depth_format or "colours",
        alpha=alpha,
        levels=levels,
        appearance=appearance,
        lod_bias=lod_bias,
        memory_budget=memory_budget,
        threads=threads,
        device=device,
        settings=changed_settings("render", scene, "rendering", config, overrides),
    )
    with terminal.progress() as bars:
        bar = bars.add_task("frames", total=None)
        report = pipeline.render(scene, options, lambda done, total: bars.update(bar, completed=done, total=total))
    terminal.result({"scene": scene, **report.to_json()}, _render_table(report))
    if report.damaged_nodes:
        terminal.say(
            f"{len(report.damaged_nodes)} damaged nodes were left out, coarser ones stand in: "
            f"infnerf-tiles verify {quote(scene)} --repair"
        )


def _render_table(report: "RenderReport") -> RenderableType:
    width, height = report.size
    kept = f", {report.frames_kept:,} of them there already" if report.frames_kept else ""
    facts = {
        "written": ", ".join(report.outputs),
        "frames": f"{report.frames:,} of {width}x{height} pixels{kept}",
        "seconds": f"{report.seconds:.1f}",
        "samples": report.samples,
        "nodes found in memory, read, dropped": (
            f"{report.hits + report.ready:,}, {report.misses - report.ready:,}, {report.evictions:,}"
        ),
        "found in memory": f"{report.hit_rate:.1%}",
        "frames that waited for a node, but the first": f"{report.frames_waited:,}",
        "read, of distinct nodes": f"{size_text(report.bytes_read)}, {size_text(report.bytes_touched)}",
        "memory for nodes: allowed, most taken": f"{size_text(report.memory_budget)}, {size_text(report.node_peak)}",
    }
    return facts_table("pictures", facts)


eval_command = command("eval", "Score pictures of a scene against held-out photos.")(evaluate)
render_command = command("render", "Draw pictures or a film of a scene.")(render)

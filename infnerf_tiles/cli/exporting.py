"""`export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.options import bytes_of, device_option, scene_argument
from infnerf_tiles.cli.terminal import Terminal, facts_table
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.outputs import check_file, check_folder

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from infnerf_tiles.geometry.node_id import NodeId
    from infnerf_tiles.rendering.renderer import DeviceChoice, Renderer

KINDS = ("points", "tiles", "depth", "cameras")


@scene_argument
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(KINDS),
    help="What to write; default: points for a name in .ply, .las or .laz, cameras for .json, tiles for a folder.",
)
@click.option(
    "--pyramid",
    type=click.IntRange(0, 12),
    default=0,
    metavar="P",
    help="Look at the scene in pictures reduced by 2^P: fewer, coarser points (default: 0, as the photos).",
)
@click.option("--node", metavar="NODE", help="Only what lies in this node's cube, such as L3/5-2-0.")
@click.option(
    "--max-points", type=click.IntRange(min=1), default=50_000_000, metavar="N", help="Stop beyond so many points."
)
@click.option(
    "--depth-format",
    type=click.Choice(["npy", "tiff"]),
    default="npy",
    help="Files of --what depth: float32 distances in world units (default: npy).",
)
@click.option(
    "--appearance",
    default="mean",
    metavar="PHOTO|mean|none",
    help="Colours as in a photo, as in the mean of all photos (the default), or without a colour transform.",
)
@click.option(
    "--memory-budget",
    metavar="BYTES",
    callback=bytes_of,
    help="Memory for the nodes drawn from, such as 2GiB.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Processor threads; default: all cores.")
@device_option
def export(
    terminal: Terminal,
    scene: str,
    output: Path,
    what: str | None,
    pyramid: int,
    node: str | None,
    max_points: int,
    depth_format: str,
    appearance: str,
    memory_budget: int | None,
    threads: int | None,
    device: "DeviceChoice | None",
) -> None:
    """Write what other programs read of SCENE to OUT: a point cloud, a 3D Tiles tileset, depth maps, or cameras.

    Points are the surfaces that the photos' cameras see, one for each cell of the node that draws it. Coordinates are
    those of the scene's CRS where it has one (tiles: on the globe, heights taken as ellipsoidal), else of its world.
    LAS, LAZ and georeferenced tiles need the extra: pip install 'infnerf-tiles[geo]'.

    \b
    Examples:
      infnerf-tiles export city.zarr city.laz
      infnerf-tiles export city.zarr city_tiles
      infnerf-tiles export city.zarr depth --what depth --depth-format tiff --node L3/5-2-0
      infnerf-tiles export city.zarr transforms.json
    """
    from infnerf_tiles.export.camera_files import write_cameras
    from infnerf_tiles.export.earth import Earth
    from infnerf_tiles.export.point_files import POINT_SUFFIXES
    from infnerf_tiles.geometry.node_id import NodeId
    from infnerf_tiles.rendering.renderer import Renderer
    from infnerf_tiles.rendering.scene import Scene

    suffix = output.suffix.lower()
    kind = what or ("points" if suffix in POINT_SUFFIXES else "cameras" if suffix == ".json" else "tiles")
    if kind == "points" and suffix not in POINT_SUFFIXES:
        raise click.UsageError(f"OUT: expected a name in {', '.join(POINT_SUFFIXES)} for points, got {output}")
    _check_output(output, kind, what)
    try:
        chosen = None if node is None else NodeId.parse(node)
    except ValueError as error:
        raise click.UsageError(f"--node: {error}") from error
    with Scene.open(scene) as opened:
        earth = Earth.of(opened.header)
        document: dict[str, Any] = {"scene": scene, "output": str(output), "what": kind, "crs": earth.crs}
        if kind == "cameras":
            document["cameras"] = write_cameras(output, opened)
        else:
            if kind != "depth" and suffix != ".ply":
                earth.known_crs()  # better now than after the pictures
            drawing = Renderer(opened, memory_budget, threads=threads, device=device)
            with drawing as renderer, terminal.progress() as bars:
                bar = bars.add_task("pictures", total=None)
                if kind == "depth":
                    document |= _depth(renderer, output, depth_format, pyramid, chosen, bars, bar)
                else:
                    options = {"pyramid": pyramid, "node": chosen, "max_points": max_points}
                    document |= _points(renderer, output, kind, appearance, options, bars, bar)
                document["node_peak"] = renderer.cache.peak_bytes
    untold = ("scene", "node_peak")
    facts = {name: value for name, value in document.items() if name not in untold and value is not None}
    terminal.result(document, facts_table(f"scene {scene}", facts))


def _check_output(output: Path, kind: str, what: str | None) -> None:
    """SettingsError for a name that does not say what is written, or a place where it cannot be."""
    if kind in ("points", "cameras"):
        check_file(output)
        return
    if output.suffix and not output.is_dir():
        known = ".ply, .las or .laz for points, .json for cameras"
        raise SettingsError(
            f"OUT: expected {known}, or a name without a suffix for a folder of {what or 'tiles'}, got {output}"
        )
    check_folder(output)


def _depth(
    renderer: "Renderer",
    output: Path,
    depth_format: str,
    pyramid: int,
    node: "NodeId | None",
    bars: "Progress",
    bar: "TaskID",
) -> dict[str, Any]:
    from infnerf_tiles.export.depth_maps import write_depth_maps

    files = write_depth_maps(
        renderer,
        output,
        kind="npy" if depth_format == "npy" else "tiff",
        pyramid=pyramid,
        node=node,
        progress=lambda done, total: bars.update(bar, completed=done, total=total),
    )
    return {"files": files}


def _points(
    renderer: "Renderer",
    output: Path,
    kind: str,
    appearance: str,
    options: dict[str, Any],
    bars: "Progress",
    bar: "TaskID",
) -> dict[str, Any]:
    from infnerf_tiles.export.cloud import collect
    from infnerf_tiles.export.earth import Earth
    from infnerf_tiles.export.point_files import write_points
    from infnerf_tiles.export.tiles3d import write_tileset
    from infnerf_tiles.rendering.appearance import appearance_of

    scene = renderer.scene
    if kind == "tiles" and output.exists() and (output.is_file() or any(output.iterdir())):
        raise SettingsError(f"{output}: expected a new or empty folder for the tileset, got one with files")
    affine = appearance_of(scene, appearance)

    def tell(done: int, total: int) -> None:
        bars.update(bar, completed=done, total=total)

    cloud = collect(renderer, affine=affine, progress=tell, **options)
    if kind == "tiles":
        written = write_tileset(output, cloud, renderer)
        return {"tiles": written.tiles, "points": written.points, "bytes": written.bytes}
    write_points(output, cloud, Earth.of(scene.header), scene.gsd_root / 2**scene.octree.depth / 16)
    return {"points": cloud.num_points, "bytes": output.stat().st_size}


export_command = command("export", "Write point clouds, 3D Tiles, depth maps or cameras.")(export)

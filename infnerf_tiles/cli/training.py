"""`build` and `train`."""

import math
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from infnerf_tiles.cli.adding import add_to_scene, refuse_with_add
from infnerf_tiles.cli.app import INTERRUPTED, command
from infnerf_tiles.cli.changes import changed_settings
from infnerf_tiles.cli.coverage import coverage_tables, tell_coverage, tell_rejected
from infnerf_tiles.cli.options import bounds_of, budget_options, place_options, scene_argument, settings_options
from infnerf_tiles.cli.progress import TrainingDisplay
from infnerf_tiles.cli.stopping import StopRequest
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, table
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.settings import load_settings

if TYPE_CHECKING:
    from infnerf_tiles.pipelines.build import BuildReport
    from infnerf_tiles.pipelines.train import TrainSummary

_MAX_ROWS = 20
_RESUMES = "what is trained is kept, and the same command, without any --redo, goes on from there"


@click.argument("data", type=click.Path(path_type=Path))
@scene_argument
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the photos, as seen from here or from DATA, if it is not DATA/images (COLMAP) or what "
    "transforms.json says.",
)
@click.option("--crs", metavar="EPSG:CODE", help="Coordinate reference system of the poses; wins over DATA/geo.json.")
@click.option(
    "--bounds",
    callback=bounds_of,
    metavar="x,y,z,X,Y,Z",
    help="Box that the octree has to hold, in the units of the poses; default: from points and cameras.",
)
@click.option("--overwrite", is_flag=True, help="Replace the scene that is at SCENE already.")
@click.option(
    "--add",
    is_flag=True,
    help="Take what photos DATA has more into the scene that is at SCENE already; what they do not show is kept.",
)
@click.option(
    "--coverage-map",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the regions from above, coloured by the number of photos that see them, with the cameras.",
)
@budget_options
@settings_options
def build(
    terminal: Terminal,
    data: Path,
    scene: str,
    images: Path | None,
    crs: str | None,
    bounds: tuple[float, ...] | None,
    overwrite: bool,
    add: bool,
    coverage_map: Path | None,
    ram: int | None,
    vram: int | None,
    scratch: int | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Partition the photos of DATA into an octree and write it, untrained, to the folder SCENE.

    DATA is a folder with a COLMAP model (binary or text; sparse/0 and images) or a transforms.json of nerfstudio,
    instant-ngp or Blender. Photos that cannot be used are left out and listed with the reason. A geo.json in DATA
    names the coordinate reference system. Tells what the photos see of each region; exit code 3 if one is lost.

    With --add, DATA is the collection that SCENE was built with, grown: the former photos are all there, unchanged and
    with the same poses (to one pixel), and the new ones lie in the same frame. Settings, bounds and the photos held out
    stay. Trained treelets that see new photos are marked, and the next train trains those and the new ones; the
    scene is drawn as before until then. Exit code 3, with what differs, if former photos are gone or have changed or
    moved, or if the new ones leave the bounds. Adding the same again changes nothing.

    \b
    Examples:
      infnerf-tiles build survey survey.zarr
      infnerf-tiles build survey survey.zarr --config aerial --set data.downscale=4
      infnerf-tiles build colmap/project scene.zarr --images photos --bounds 0,0,-5,200,200,60
      infnerf-tiles build --add survey-with-second-flight survey.zarr
      infnerf-tiles build --list-settings
    """
    from infnerf_tiles.pipelines import build as pipeline
    from infnerf_tiles.pipelines.plan import Budgets

    if add:
        refuse_with_add(
            {"--overwrite": overwrite, "--bounds": bounds, "--crs": crs, "--config": config, "--set": overrides}
            | {"--ram": ram, "--vram": vram, "--scratch": scratch}
        )
        return add_to_scene(terminal, data, scene, images, coverage_map)
    _check_place(scene)
    settings = load_settings(config, overrides)
    report = pipeline.build(
        data, scene, settings, images=images, crs=crs, bounds=bounds, overwrite=overwrite,
        coverage_map=coverage_map, budgets=Budgets(ram=ram, vram=vram, scratch=scratch),
    )  # fmt: skip
    tell_rejected(terminal, report.rejected)
    terminal.result({"scene": scene, **report.to_json()}, *_build_tables(scene, report))
    if coverage_map is not None:
        terminal.say(f"coverage map: {coverage_map}")
    code = tell_coverage(terminal, report.coverage)
    if not code:
        terminal.say(f"next: infnerf-tiles train {quote(scene)}")
    return code


def _check_place(scene: str) -> None:
    from infnerf_tiles.store.location import display_name

    if "://" in scene:
        raise SettingsError(
            f"SCENE: expected a folder to build in, got the address {display_name(scene)}; build in a folder of this "
            "machine, and copy the trained scene there"
        )
    if scene.lower().endswith(".zip"):
        raise SettingsError(
            f"SCENE: expected a folder to build in, got {scene}; build in a folder, and make a .zip with 'pack'"
        )


def _build_tables(scene: str, report: "BuildReport") -> list[RenderableType]:
    facts = {
        "photos": report.photos,
        "of them for testing": report.test_photos,
        "photos with masks": f"{report.masked_photos:,} of {report.photos:,}",
        "left out": len(report.rejected),
        "sparse points": report.points,
        "of them outside the bounds": report.points_outside,
        "pixels to train on, with pyramids": report.pixels,
        "nodes per level": " ".join(f"{count:,}" for count in report.nodes_per_level),
        "treelets per band": " ".join(f"{count:,}" for count in report.treelets_per_band),
        "edge of the root cube": f"{report.root_edge:.4g}",
        "finest GSD": f"{report.gsd_finest:.4g}",
    }
    return [facts_table(f"scene {scene}", facts), *coverage_tables(report.coverage)]


@scene_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the data set is now, if it was moved since build.",
)
@click.option(
    "--images", type=click.Path(path_type=Path), metavar="DIR", help="Where the photos are now, if not in DATA."
)
@click.option(
    "--redo",
    metavar="TREELET",
    help="Train this treelet again, and all below it; TREELET is its root, such as L2/1-0-3 (see info --treelets).",
)
@click.option(
    "--accept-changes",
    is_flag=True,
    help="Go on although settings or photos are not those that the trained treelets were made with.",
)
@budget_options
@place_options
@settings_options
def train(
    terminal: Terminal,
    scene: str,
    data: Path | None,
    images: Path | None,
    redo: str | None,
    accept_changes: bool,
    ram: int | None,
    vram: int | None,
    scratch: int | None,
    workers: int | None,
    scheduler: str | None,
    requests: dict[str, float],
    threads: int | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Train what is not yet trained in SCENE: first what all treelets share, then treelet by treelet, coarse to fine.

    Interrupt it whenever you like: the same command goes on where it was stopped. Ctrl-C lets the treelets in hand
    finish, a second one stops at once. --config and --set change settings
    of the section training, on top of those stored in the scene; the others were fixed by build.

    \b
    Examples:
      infnerf-tiles train city.zarr
      infnerf-tiles train city.zarr --set training.passes=6
      infnerf-tiles train city.zarr --data /new/place/of/the/photos
      infnerf-tiles train city.zarr --redo L2/1-0-3
      infnerf-tiles train city.zarr --workers 4
      infnerf-tiles train city.zarr --scheduler tcp://10.0.0.1:8786
    """
    from infnerf_tiles.pipelines import train as pipeline
    from infnerf_tiles.pipelines.cluster import Workplace, default_workers
    from infnerf_tiles.pipelines.plan import Budgets

    settings = changed_settings("train", scene, "training", config, overrides)
    place = Workplace(
        workers=default_workers() if workers is None and scheduler is None else workers or 0,
        scheduler=scheduler,
        threads=threads,
        requests=requests,
    )
    with TrainingDisplay.of_scene(terminal, scene, settings, redo) as display, StopRequest(terminal) as stop:
        summary = pipeline.train(
            scene,
            data=None if data is None else str(data),
            images=None if images is None else str(images),
            settings=settings,
            redo=redo,
            accept_changes=accept_changes,
            place=place,
            budgets=Budgets(ram=ram, vram=vram, scratch=scratch),
            progress=display.update,
            stop=stop,
            say=terminal.say,
        )
    terminal.result({"scene": scene, **summary.to_json(), "reports": _reports(summary)}, *_train_tables(summary))
    if not summary.reports and not summary.remaining:
        anew = f"infnerf-tiles train {quote(scene)} --redo L0/0-0-0"
        terminal.say(f"everything is trained already; to train it anew: {anew}")
    tell_rejected(terminal, tuple((photo.name, photo.reason) for photo in summary.unusable))
    for reason in summary.failed:
        terminal.error(f"treelet {reason}")
    if summary.failed:
        terminal.error(f"{len(summary.failed)} treelets failed; the same command, without any --redo, tries them again")
        return 1
    if stop() and summary.remaining:
        terminal.error(f"interrupted; {_RESUMES}")
        return INTERRUPTED
    return 0


def _reports(summary: "TrainSummary") -> list[dict[str, object]]:
    names = ("treelet", "nodes", "steps", "seconds", "psnr", "rays", "samples")
    return [{name: getattr(report, name) for name in names} for report in summary.reports]


def _train_tables(summary: "TrainSummary") -> list[RenderableType]:
    facts = {
        "treelets trained": summary.treelets,
        "trained before": summary.skipped,
        "failed": len(summary.failed),
        **({"photos left out, undecodable": len(summary.unusable)} if summary.unusable else {}),
        "nodes in all": summary.nodes,
        "rays": summary.rays,
        "samples": summary.samples,
        "pixels given to treelets": f"{summary.treelet_pixels:,}, {_ratio(summary)} of the photos' own",
        "seconds": f"{summary.seconds:.1f}",
    }
    tables = [facts_table("training", facts)]
    if summary.reports:
        # the worst ones need a look first; one that no photo shows has nothing to be bad at
        worst = sorted(summary.reports, key=lambda r: math.inf if r.psnr is None else r.psnr)[:_MAX_ROWS]
        title = "treelets" + (f": the {_MAX_ROWS} of the lowest PSNR" if len(summary.reports) > _MAX_ROWS else "")
        rows = [(r.treelet, r.nodes, r.steps, decibel(r.psnr), f"{r.seconds:.1f}") for r in worst]
        tables.append(table(title, ("treelet", "nodes", "steps", "PSNR (training)", "seconds"), rows))
    return tables


def _ratio(summary: "TrainSummary") -> str:
    return f"{summary.treelet_pixels / max(summary.photo_pixels, 1):.2f} times"


build_command = command("build", "Partition posed photos into an octree; write an untrained scene.")(build)
train_command = command("train", "Train what is not yet trained; goes on after interruptions.", on_interrupt=_RESUMES)(
    train
)

"""`demo`: everything once, on a small city whose photos it makes itself."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.options import device_option, settings_options, size_of
from infnerf_tiles.cli.progress import TrainingDisplay
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, size_text
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.outputs import check_folder
from infnerf_tiles.process import peak_memory
from infnerf_tiles.settings import Settings, load_settings

_RECORD = "demo.json"
_FORM = "infnerf-tiles demo"
_STAGES = ("photos", "build", "train", "eval", "pictures")
_BLOCKS = (2, 2)
_RESUMES = "what is done is kept, and the same command goes on from there"


@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path("infnerf-demo"))
@click.option(
    "--photos", "num_photos", type=click.IntRange(min=8), default=40, metavar="N", help="Photos to take of the city."
)
@click.option("--size", metavar="WxH", default="192x144", callback=size_of, help="Size of the photos, in pixels.")
@click.option("--frames", type=click.IntRange(min=1), default=16, metavar="N", help="Frames of the film.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Processor threads; default: all cores.")
@device_option
@settings_options
def demo(
    terminal: Terminal,
    folder: Path,
    num_photos: int,
    size: tuple[int, int],
    frames: int,
    threads: int | None,
    device: str | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Make photos of a synthetic city, build a scene from them, train it, score it and draw it, all in the folder DIR.

    DIR is infnerf-demo unless you name another. What is there from an earlier call is used again, so that an
    interrupted demo goes on where it stopped. --config and --set change the settings file that ships as "demo".

    \b
    Examples:
      infnerf-tiles demo
      infnerf-tiles demo /tmp/small --photos 16 --size 160x120
      infnerf-tiles demo /tmp/better --set training.passes=6
    """
    from infnerf_tiles.cli import demo_stages as stages
    from infnerf_tiles.kernels import chosen_device

    if device is not None:
        overrides = (f"training.device={device}", f"rendering.device={device}", *overrides)
    settings = load_settings(config or "demo", overrides)
    for choice in (settings.training.device, settings.rendering.device):
        chosen_device(choice)  # better now than after the photos
    record = _Record.of_folder(folder, _parameters(num_photos, size, settings))
    photos, scene = folder / "photos", str(folder / "city.zarr")
    with record.stage(terminal, "photos", f"taking {num_photos} photos") as todo:
        if todo:
            stages.take_photos(photos, _BLOCKS, num_photos, size)
    with record.stage(terminal, "build", "building the octree") as todo:
        if todo:
            shutil.rmtree(scene, ignore_errors=True)  # what an interrupted build left
            stages.build_scene(photos, scene, settings)
    with (
        record.stage(terminal, "train", "training", again=True),
        TrainingDisplay.of_scene(terminal, scene, settings) as display,
    ):
        failed = stages.train_scene(scene, photos, settings, threads, display.update)
    generation = stages.generation_of(scene)
    if record.values.get("generation") != generation:
        record.forget("eval", "pictures")
    with record.stage(terminal, "eval", "scoring held-out photos") as todo, terminal.progress() as bars:
        if todo:
            bar = bars.add_task("pictures", total=None)
            record.values["eval"] = stages.score(
                scene, photos, threads, lambda done, total: bars.update(bar, completed=done, total=total)
            )
    with record.stage(terminal, "pictures", f"drawing {frames} frames") as todo, terminal.progress() as bars:
        if todo or not all((folder / name).is_file() for name in stages.FILES):
            bar = bars.add_task("frames", total=frames)
            stages.draw(scene, photos, folder, frames, threads, lambda done: bars.update(bar, completed=done))
    record.values["generation"] = generation
    record.save()
    document = {"folder": str(folder), **stages.facts(scene), **_results(record), "failed": list(failed)}
    files = {name: str(folder / name) for name in ("photos", "city.zarr", *stages.FILES)}
    document["files_made"] = files
    terminal.result(document, _summary(document), facts_table("what is where", _explained(files)))
    for reason in failed:
        terminal.error(f"treelet {reason}")
    return 1 if failed else 0


def _parameters(num_photos: int, size: tuple[int, int], settings: Settings) -> dict[str, Any]:
    """What the demo in a folder was made with; another demo needs another folder."""
    return {
        "photos": num_photos,
        "size": list(size),
        "blocks": list(_BLOCKS),
        "settings": _without_devices(settings.model_dump(mode="json")),
    }


def _without_devices(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings but where they are computed, which may change from call to call."""
    sections = {name: dict(section) for name, section in settings.items()}
    for section in ("training", "rendering"):
        sections.get(section, {}).pop("device", None)
    return sections


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The options that differ, each as "name then instead of now"."""
    flat = [
        {name: value for name, value in parameters.items() if name != "settings"}
        | {f"{s}.{key}": v for s, section in parameters["settings"].items() for key, v in section.items()}
        for parameters in (then, now)
    ]
    names = dict.fromkeys((*flat[0], *flat[1]))
    return [f"{n} {flat[1].get(n)} instead of {flat[0].get(n)}" for n in names if flat[0].get(n) != flat[1].get(n)]


class _Record:
    """What is done in a demo's folder, kept in a file there.

    values: "parameters", "seconds" per stage, "done" (names of finished stages), "running" (the stage at work),
    "killed" (whether a call ended without its time being noted), "generation" and "eval".
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.values = values
        self._path = path

    @classmethod
    def of_folder(cls, folder: Path, parameters: Mapping[str, Any]) -> "_Record":
        """The record of a folder, which is made if there is none.

        SettingsError if the folder holds something else, or a demo of other parameters.
        """
        path = folder / _RECORD
        if not path.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise SettingsError(
                    f"demo: expected {folder} to be new, empty or of an earlier demo; name another folder"
                )
            check_folder(folder)
            return cls(path, {"form": _FORM, "parameters": dict(parameters), "seconds": {}, "done": []})
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = values["form"] == _FORM and isinstance(values["seconds"], dict) and isinstance(values["done"], list)
            then = dict(values["parameters"])
            then["settings"] = _without_devices(then["settings"])
            different = _differences(then, parameters)
        except (ValueError, KeyError, TypeError, AttributeError):
            known, different = False, []
        if not known:
            raise SettingsError(f"demo: {path} is not the record of a demo; name another folder")
        if different and values["done"]:
            raise SettingsError(
                f"demo: {folder} holds a demo that was made with other options ({'; '.join(different)}); give the same "
                "ones to go on with it, or name another folder"
            )
        if different:  # nothing of it exists yet
            return cls(path, {"form": _FORM, "parameters": dict(parameters), "seconds": {}, "done": []})
        return cls(path, values)

    def save(self) -> None:
        """Write the file, as a whole or not at all."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path)

    def forget(self, *stages: str) -> None:
        """These stages are to be done again."""
        self.values["done"] = [name for name in self.values["done"] if name not in stages]
        for name in stages:
            self.values["seconds"].pop(name, None)

    @contextmanager
    def stage(self, terminal: Terminal, name: str, what: str, *, again: bool = False) -> Iterator[bool]:
        """Time one stage and note that it is done; yields whether it is still to do (`again`: it always is)."""
        todo = again or name not in self.values["done"]
        number = f"{_STAGES.index(name) + 1} of {len(_STAGES)}"
        terminal.say(f"{number}: {what}" if todo else f"{number}: {what}: done before")
        started = time.monotonic()
        if todo:
            # a call that is killed in the middle leaves this behind, and its time is not known
            self.values["killed"] = self.values.get("killed", False) or "running" in self.values
            self.values["running"] = name
            self.save()
        try:
            yield todo
            if name not in self.values["done"]:
                self.values["done"].append(name)
        finally:
            if todo:
                before = float(self.values["seconds"].get(name, 0.0))
                self.values["seconds"][name] = before + time.monotonic() - started
                self.values.pop("running", None)
                self.save()


def _results(record: _Record) -> dict[str, Any]:
    seconds = {name: record.values["seconds"].get(name, 0.0) for name in _STAGES}
    return {
        "photos": record.values["parameters"]["photos"],
        "eval": record.values["eval"],
        "seconds": {**seconds, "all": sum(seconds.values())},
        "seconds_complete": not record.values.get("killed", False),
        "peak_bytes": peak_memory(),
    }


def _summary(document: Mapping[str, Any]) -> Any:
    levels, seconds = document["eval"]["levels"], document["seconds"]
    return facts_table(
        "the demo in figures",
        {
            "photos": f"{document['photos']}, {document['eval']['images']} of them held out",
            "nodes per level": " ".join(f"{level['trained_nodes']:,}" for level in document["levels"]),
            "treelets per band": " ".join(f"{band['trained_treelets']:,}" for band in document["bands"]),
            "PSNR per pyramid level, plain": " ".join(decibel(level["psnr"]) for level in levels),
            "PSNR per pyramid level, half": " ".join(decibel(level["psnr_half"]) for level in levels),
            "size of the scene": f"{size_text(document['bytes'])} in {document['files']:,} files",
            "peak memory": size_text(document["peak_bytes"]),
            "seconds" if document["seconds_complete"] else "seconds, without killed calls": ", ".join(
                f"{name} {value:.1f}" for name, value in seconds.items()
            ),
        },
    )


def _explained(files: Mapping[str, str]) -> dict[str, str]:
    meaning = {
        "photos": "the data set, as COLMAP writes it",
        "city.zarr": "the scene; infnerf-tiles info, render, eval take it",
        "orbit.mp4": "a film around the city",
        "compare.png": "a held-out view: photo, render, depth",
        "levels.png": "a view across the city: render, level of detail",
    }
    return {meaning[name]: path for name, path in files.items()}


demo_command = command("demo", "Everything once, on a small synthetic city.", on_interrupt=_RESUMES)(demo)

"""How training shows on the terminal: a line per finished treelet, and bars for the scene and the treelets at work."""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from infnerf_tiles.arrays import Bool, Int64
from infnerf_tiles.cli.terminal import Terminal, decibel
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, key_levels
from infnerf_tiles.settings import Settings
from infnerf_tiles.store.index import TreeletState
from infnerf_tiles.store.scene_store import SceneStore

_SEED = "seed"
_HEARTBEAT = 30.0  # seconds between lines where there are no bars, so that a log shows that it goes on
_ETA_FROM = 0.02  # share of the work before which a guess of the time left is worth nothing


@dataclass
class _Running:
    """A treelet under way."""

    since: float
    share: float = 0.0
    psnr: float = 0.0
    bar: TaskID | None = None


class TrainingDisplay:
    """Takes (name, share, PSNR) as training reports them.

    weights: expected share of the work per treelet root, "seed" included; treelets that come up later (growth) count
    as the mean of the others.
    """

    def __init__(self, terminal: Terminal, weights: dict[str, float]) -> None:
        self._terminal = terminal
        self._weights = dict(weights)
        self._done = 0.0
        self._running: dict[str, _Running] = {}
        self._start = self._last_line = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=terminal.err,
            disable=terminal.quiet or not terminal.err.is_terminal,
            transient=True,
        )
        self._scene_bar: TaskID | None = None
        self._finished: set[str] = set()
        self._lock = threading.Lock()  # reports of other processes come in on another thread

    @classmethod
    def of_scene(cls, terminal: Terminal, scene: str, settings: Settings, redo: str | None = None) -> Self:
        """The display for what is left to train in a scene; a treelet counts by its nodes.

        redo: root of a treelet that is to be trained again, with all below it. SettingsError if that is no node.
        """
        with SceneStore.open(scene) as store:
            index, has_seed = store.read_index(), store.has_small("decoder")
        nodes = np.bincount(index.treelets, minlength=index.num_treelets)
        todo = np.flatnonzero((index.treelet_states != TreeletState.TRAINED) | _at_or_below(index.root_keys, redo))
        weights = {str(NodeId.from_key(int(index.root_keys[row]))): float(nodes[row]) for row in todo.tolist()}
        share = settings.training.seed_share
        if not has_seed and share > 0 and weights:
            sampled = min(1.0, settings.training.seed_nodes / index.num_nodes)
            total = sum(weights.values())
            weights = {name: weight * (1.0 - share * sampled) for name, weight in weights.items()}
            weights[_SEED] = total * share * sampled
        return cls(terminal, weights)

    def update(self, name: str, share: float, psnr: float) -> None:
        """Training reports: `share` of treelet `name` is done, at `psnr` dB on its training pixels.

        Several treelets may be under way at once; one is finished with its share at 1.
        """
        with self._lock:
            running = self._running.get(name)
            if running is None:
                if share >= 1.0 and name in self._finished:
                    return
                running = self._running[name] = _Running(since=time.monotonic())
                if name not in self._weights:
                    known = self._weights.values()
                    self._weights[name] = sum(known) / len(known) if known else 1.0
            running.share, running.psnr = share, psnr
            self._draw(name, running)
            if share >= 1.0:
                self._finish(name, self._running.pop(name))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _finish(self, name: str, running: "_Running") -> None:
        self._done += self._weights[name]
        self._finished.add(name)
        seconds = time.monotonic() - running.since
        what = "seed stage" if name == _SEED else f"treelet {name}"
        self._terminal.say(f"{what}: {decibel(running.psnr)} dB on its training pixels, {seconds:.1f} s")
        self._last_line = time.monotonic()
        if running.bar is not None:
            self._bars.remove_task(running.bar)

    def _draw(self, name: str, running: "_Running") -> None:
        total = sum(self._weights.values())
        under_way = sum(r.share * self._weights[n] for n, r in self._running.items())
        overall = (self._done + under_way) / total
        if self._bars.disable:
            if time.monotonic() - self._last_line >= _HEARTBEAT:
                self._last_line = time.monotonic()
                what = f"{name} {running.share:.0%}, {decibel(running.psnr)} dB"
                self._terminal.say(f"{overall:.0%} of the scene, {what}, {self._time_left(overall)}")
            return
        if self._scene_bar is None:
            self._scene_bar = self._bars.add_task("scene", total=1.0, note="")
        if running.bar is None:
            running.bar = self._bars.add_task(name, total=1.0, note="")
        self._bars.update(self._scene_bar, completed=overall, note=self._time_left(overall))
        self._bars.update(running.bar, completed=running.share, note=f"{decibel(running.psnr)} dB")

    def _time_left(self, overall: float) -> str:
        if overall < _ETA_FROM:
            return "time left: –"
        left = (time.monotonic() - self._start) * (1.0 - overall) / overall
        minutes, seconds = divmod(int(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"time left: {hours}:{minutes:02}:{seconds:02}" if hours else f"time left: {minutes}:{seconds:02}"


def _at_or_below(keys: Int64, redo: str | None) -> Bool:
    """bool[n]: whether the nodes int64[n] lie in the cube of a node given as text (None: none does)."""
    inside: Bool = np.zeros(len(keys), np.bool_)
    if redo is not None:
        top = NodeId.parse(redo)
        deep = key_levels(keys) >= top.level
        inside[deep] = ancestor_keys(keys[deep], top.level) == top.key
    return inside

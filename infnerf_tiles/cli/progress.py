"""How training shows on the terminal: a line per finished treelet, and bars for the scene and the treelet at work."""

import time
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


class TrainingDisplay:
    """Takes (name, share, PSNR) as training reports them.

    weights: expected share of the work per treelet root, "seed" included; treelets that come up later (growth) count
    as the mean of the others.
    """

    def __init__(self, terminal: Terminal, weights: dict[str, float]) -> None:
        self._terminal = terminal
        self._weights = dict(weights)
        self._done = 0.0
        self._name: str | None = None
        self._share = 0.0
        self._psnr = 0.0
        self._since = self._start = self._last_line = time.monotonic()
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
        self._treelet_bar: TaskID | None = None

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
        if not has_seed and share > 0:
            weights[_SEED] = sum(weights.values()) * share / (1.0 - share)
        return cls(terminal, weights)

    def update(self, name: str, share: float, psnr: float) -> None:
        """Training reports: `share` of treelet `name` is done, at `psnr` dB on its training pixels."""
        if name != self._name:
            self._finish()
            self._name, self._since = name, time.monotonic()
            if self._treelet_bar is not None:
                self._bars.reset(self._treelet_bar)  # its clock
            if name not in self._weights:
                known = self._weights.values()
                self._weights[name] = sum(known) / len(known) if known else 1.0
        self._share, self._psnr = share, psnr
        self._draw()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def _finish(self) -> None:
        if self._name is None:
            return
        self._done += self._weights[self._name]
        seconds = time.monotonic() - self._since
        what = "seed stage" if self._name == _SEED else f"treelet {self._name}"
        self._terminal.say(f"{what}: {decibel(self._psnr)} dB on its training pixels, {seconds:.1f} s")
        self._last_line = time.monotonic()
        self._name = None

    def _draw(self) -> None:
        if self._name is None:
            return
        total = sum(self._weights.values())
        overall = (self._done + self._share * self._weights[self._name]) / total
        if self._bars.disable:
            if time.monotonic() - self._last_line >= _HEARTBEAT:
                self._last_line = time.monotonic()
                what = f"{self._name} {self._share:.0%}, {decibel(self._psnr)} dB"
                self._terminal.say(f"{overall:.0%} of the scene, {what}, {self._time_left(overall)}")
            return
        if self._scene_bar is None:
            self._scene_bar = self._bars.add_task("scene", total=1.0, note="")
            self._treelet_bar = self._bars.add_task("", total=1.0, note="")
        self._bars.update(self._scene_bar, completed=overall, note=self._time_left(overall))
        if self._treelet_bar is not None:
            note = f"{decibel(self._psnr)} dB"
            self._bars.update(self._treelet_bar, description=self._name, completed=self._share, note=note)

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

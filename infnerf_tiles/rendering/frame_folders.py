"""The folders of a sequence of frames: a record in each says what is in it, so that nothing else is ever replaced."""

import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.outputs import check_folder
from infnerf_tiles.rendering.video import PARTIAL_SUFFIX

RECORD = "sequence.json"
"""In every folder of frames: the sequence's fingerprint, how many frames there may be, and the sequence's folders."""
_FRAME = re.compile(r"frame_(\d{6})\.(?:png|npy|tiff)")
_log = logging.getLogger(__name__)

DepthRange = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Record:
    """fingerprint: of the sequence. frames: those that are whole; in a folder of extras, those that there may be.
    folders: names of the sequence's folders, side by side. depth_range: of the colours of depth."""

    fingerprint: str
    frames: int
    folders: tuple[str, ...] = ()
    depth_range: DepthRange | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in a folder; None if there is none, or not one of ours."""
        try:
            content = json.loads((folder / RECORD).read_text("utf-8"))
            scale = content["depth_range"]
            return cls(
                fingerprint=str(content["fingerprint"]),
                frames=int(content["frames"]),
                folders=tuple(str(name) for name in content.get("folders", ())),
                depth_range=None if scale is None else (float(scale[0]), float(scale[1])),
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        content: Mapping[str, Any] = {
            "fingerprint": self.fingerprint,
            "frames": self.frames,
            "folders": list(self.folders),
            "depth_range": self.depth_range,
        }
        partial = folder / f".{RECORD}{PARTIAL_SUFFIX}"
        partial.write_text(json.dumps(content), "utf-8")
        partial.replace(folder / RECORD)


class FrameFolders:
    """The folders that one sequence is written to, the colours' first if those go to a folder."""

    def __init__(self, folders: Sequence[Path], fingerprint: str, num_frames: int) -> None:
        """fingerprint: what has to be the same for frames to belong together. num_frames: in all.

        SettingsError if a folder cannot be written or holds anything but frames that were drawn before. New folders are
        made, nothing else is changed.
        """
        self._folders = tuple(folders)
        self._fingerprint = fingerprint
        self._num_frames = num_frames
        for folder in self._folders:
            check_folder(folder)
            _check_ours(folder)

    def frames_done(self) -> tuple[int, DepthRange | None]:
        """(leading frames of this sequence that are there, the depth scale that they were made with)."""
        records = [_Record.read(folder) for folder in self._folders]
        first = records[0]
        if first is None or any(record is None or record.fingerprint != self._fingerprint for record in records):
            return 0, None
        done = min(first.frames, self._num_frames)
        for folder in self._folders:
            there = set(_frames(folder))
            done = next((number for number in range(done) if number not in there), done)
        return (done, first.depth_range) if done else (0, None)

    def begin(self, done: int, depth_range: DepthRange | None) -> None:
        """Make the folders ready for the frames from `done` on; whatever else was drawn before goes: the frames of
        another sequence, and those of its extras."""
        dropped = 0
        for folder in self._unused():
            dropped += _drop(folder, 0)
            (folder / RECORD).unlink()
            with contextlib.suppress(OSError):  # other things are in it
                folder.rmdir()
        for folder in self._folders:
            dropped += _drop(folder, done)
        if dropped and not done:
            _log.warning("%s: %d pictures drawn before made room for other ones", self._folders[0], dropped)
        self.note(done, depth_range)
        for folder in self._folders[1:]:
            self._record(self._num_frames, None).write(folder)

    def note(self, done: int, depth_range: DepthRange | None) -> None:
        """So many frames are there."""
        self._record(done, depth_range).write(self._folders[0])

    def _record(self, frames: int, depth_range: DepthRange | None) -> _Record:
        names = tuple(folder.name for folder in self._folders)
        return _Record(fingerprint=self._fingerprint, frames=frames, folders=names, depth_range=depth_range)

    def _unused(self) -> list[Path]:
        """Folders of the sequence that was in the first one, but is none of this one's."""
        first = self._folders[0]
        record = _Record.read(first)
        if record is None or record.folders[:1] != (first.name,):  # a copy has no folders of its own beside it
            return []
        beside = [first.parent / name for name in record.folders if Path(name).name == name]
        found = [(folder, _Record.read(folder)) for folder in beside if folder not in self._folders]
        return [folder for folder, other in found if other is not None and other.fingerprint == record.fingerprint]


def _check_ours(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and _Record.read(folder) is None:
        raise SettingsError(
            f"{folder}: expected a new or empty folder, or one of frames drawn before, got one with other files; "
            "name another"
        )


def _frames(folder: Path) -> dict[int, Path]:
    """The frames in a folder by number."""
    return {int(match[1]): path for path in folder.iterdir() if (match := _FRAME.fullmatch(path.name))}


def _drop(folder: Path, first: int) -> int:
    """Delete the frames from `first` on that the folder's record names; returns how many there were."""
    record = _Record.read(folder)
    if record is None:
        return 0
    # the one after the last noted frame may have been finished too
    named = [path for number, path in _frames(folder).items() if first <= number <= record.frames]
    for path in named:
        path.unlink()
    return len(named)

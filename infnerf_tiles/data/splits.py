"""Which photos are held out: every k-th one, a list, or the data set's own split."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from infnerf_tiles.arrays import Bool
from infnerf_tiles.data.json_file import read_json
from infnerf_tiles.data.records import OwnSplit
from infnerf_tiles.errors import DatasetError, SettingsError

SPLIT_FILE = "split.json"


def every_kth(names: Sequence[str], k: int) -> Bool:
    """bool[n]: photos 0, k, 2k, ... of the names in sorted order; none for k = 0, or if there is only one photo.

    SettingsError for k = 1 (nothing would be left to train on) or below 0.
    """
    if k < 0 or k == 1:
        raise SettingsError(f"data.test_every: expected 0 (no test photos) or at least 2, got {k}")
    is_test = np.zeros(len(names), np.bool_)
    if k and len(names) > 1:
        is_test[np.array(sorted(range(len(names)), key=names.__getitem__))[::k]] = True
    return is_test


def match_names(wanted: Iterable[str], names: Sequence[str], source: str) -> tuple[Bool, tuple[str, ...]]:
    """(bool[n] which of `names` are wanted, wanted names that match none).

    A wanted name matches the same name, or else the one photo whose path ends with it. DatasetError naming `source`
    if it fits the end of several.
    """
    row_of: dict[str, int] = {}
    ends: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if row_of.setdefault(name, row) != row:
            continue
        parts = PurePosixPath(name).parts
        for i in range(1, len(parts)):
            ends.setdefault("/".join(parts[i:]), []).append(row)
    chosen = np.zeros(len(names), np.bool_)
    missing = []
    for name in wanted:
        clean = str(PurePosixPath(name.replace("\\", "/")))
        rows = [row_of[clean]] if clean in row_of else ends.get(clean, [])
        if len(rows) > 1:
            raise DatasetError(
                f"{source}: expected names of single photos, got {name!r}, which fits {len(rows)} of them "
                f"({names[rows[0]]}, {names[rows[1]]}, ...); write it with its folder"
            )
        if rows:
            chosen[rows[0]] = True
        else:
            missing.append(name)
    return chosen, tuple(missing)


def read_name_list(path: Path) -> tuple[str, ...]:
    """Photo names from a text file (one a line, # starts a comment line) or a .json file (a list, or {"test": list}).

    DatasetError if it cannot be read or holds no names.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        names = content.get("test") if isinstance(content, dict) else content
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f'{path}: expected a list of photo names or {{"test": [names]}}, got something else')
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: expected a readable list of photo names, got: {error}") from error
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise DatasetError(f"{path}: expected at least one photo name, got none")
    return tuple(names)


def read_split_file(folder: Path) -> OwnSplit | None:
    """The split of a data set's folder that has a split.json ({"test": [names], optionally "train": [names]})."""
    path = folder / SPLIT_FILE
    if not path.is_file():
        return None
    content = read_json(path)
    lists = {key: content.get(key) for key in ("test", "train")} if isinstance(content, dict) else {}
    for key, names in lists.items():
        optional = key == "train" and names is None
        if not optional and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DatasetError(f"{path}: expected a list of photo names under {key!r}, got {names!r:.60}")
    if not lists:
        raise DatasetError(f'{path}: expected {{"test": [names]}}, got a {type(content).__name__}')
    train = lists["train"]
    return OwnSplit(
        source=str(path), test=frozenset(lists["test"] or ()), train=None if train is None else frozenset(train)
    )

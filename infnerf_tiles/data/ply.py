"""Points from PLY files: ascii and binary, vertex element only."""

import re
from pathlib import Path

import numpy as np

from infnerf_tiles.arrays import AnyArray, Float64, UInt8
from infnerf_tiles.data.records import Points, points_without_tracks
from infnerf_tiles.errors import DatasetError

_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_BYTE_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER_BYTES = 1 << 16
_GREY = 128


def read_ply_points(path: Path) -> Points:
    """x, y, z (and red, green, blue where present, else grey) of a PLY file's vertices.

    No tracks, error 0; vertices that are not finite are left out. DatasetError if the file is damaged, truncated or
    has no such vertices.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable PLY file, got: {error.strerror or error}") from error
    end = re.search(rb"end_header[ \t]*\r?\n", data[:_MAX_HEADER_BYTES])
    if not data.startswith(b"ply") or end is None:
        raise DatasetError(f"{path}: expected a PLY header ending in end_header, got none; export the points again")
    form, count, columns = _parse_header(path, data[: end.start()].decode("ascii", "replace"))
    if form == "ascii":
        table = _ascii_table(path, data[end.end() :], count, columns)
    else:
        needed = end.end() + count * columns.itemsize
        if needed > len(data):
            raise DatasetError(
                f"{path}: byte {end.end()}: expected {count} vertices of {columns.itemsize} bytes up to byte {needed}, "
                f"got a file of {len(data)} bytes; the file is truncated, copy or export it again"
            )
        table = np.frombuffer(data, columns, count, end.end())
    xyz = np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
    return points_without_tracks(xyz, _colours(table))


def _parse_header(path: Path, header: str) -> tuple[str, int, np.dtype[np.void]]:
    """(format, number of vertices, structured dtype of a vertex)."""
    form, count, element = "", -1, ""
    fields: list[tuple[str, str]] = []
    for line in header.splitlines()[1:]:
        words = line.split()
        match words:
            case ["format", name, *_] if name in _BYTE_ORDERS:
                form = name
            case ["element", name, number] if number.isdecimal():
                if name != "vertex" and count < 0 and int(number) > 0:
                    raise DatasetError(f"{path}: expected vertices first, got element {name!r}; export points only")
                element = name
                if name == "vertex":
                    count = int(number)
            case ["property", kind, name] if element == "vertex" and kind in _TYPES:
                fields.append((name, _BYTE_ORDERS[form or "ascii"] + _TYPES[kind]))
            case ["property", *_] if element == "vertex":
                raise DatasetError(f"{path}: expected scalar vertex properties, got {line!r}; export points only")
            case ["format" | "element", *_]:
                raise DatasetError(
                    f"{path}: expected 'format {' | '.join(_BYTE_ORDERS)} 1.0' and 'element NAME COUNT', got {line!r}"
                )
            case _:
                pass
    names = [name for name, _ in fields]
    if not form or count < 0 or not {"x", "y", "z"} <= set(names) or len(set(names)) != len(names):
        raise DatasetError(f"{path}: expected a format and vertices with x, y, z, got properties {names}")
    return form, count, np.dtype(fields)


def _ascii_table(path: Path, body: bytes, count: int, columns: np.dtype[np.void]) -> AnyArray:
    names = columns.names or ()
    needed = count * len(names)
    words = body.split(maxsplit=needed)[:needed] if needed <= len(body) else []
    if len(words) < needed:
        raise DatasetError(
            f"{path}: expected {count} vertices of {len(names)} numbers, got {len(words)} numbers; "
            "the file is truncated, copy or export it again"
        )
    try:
        values = np.array(words, dtype=np.float64).reshape(count, len(names))
    except ValueError as error:
        raise DatasetError(
            f"{path}: expected numbers after the header, got: {error}; export the points again"
        ) from error
    table = np.empty(count, columns)
    with np.errstate(invalid="ignore"):
        for i, name in enumerate(names):
            table[name] = values[:, i]
    return table


def _colours(table: AnyArray) -> UInt8:
    names = table.dtype.names or ()
    if not {"red", "green", "blue"} <= set(names):
        return np.full((len(table), 3), _GREY, np.uint8)
    rgb: Float64 = np.stack([table[name] for name in ("red", "green", "blue")], axis=1).astype(np.float64)
    if table["red"].dtype.kind == "f":  # writers that store float colours use 0 to 1
        rgb *= 255
    elif table["red"].dtype.itemsize == 2:
        rgb /= 257
    whole: UInt8 = np.clip(np.nan_to_num(np.rint(rgb)), 0, 255).astype(np.uint8)
    return whole

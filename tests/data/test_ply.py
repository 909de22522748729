"""PLY points."""

from pathlib import Path

import numpy as np
import pytest

from infnerf_tiles.data.ply import read_ply_points
from infnerf_tiles.errors import DatasetError

XYZ = np.array([[1.5, -2, 3e-3], [0, 1e6, -0.25], [7, 8, 9]])
RGB = np.array([[0, 128, 255], [1, 2, 3], [9, 8, 7]], np.uint8)
FIELDS = [("nx", "f4"), ("x", "f4"), ("y", "f8"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort"}


def ply(
    form: str, fields: list[tuple[str, str]] = FIELDS, xyz: np.ndarray = XYZ, after: str = "", end: str = "\n"
) -> bytes:
    order = ">" if "big" in form else "<"
    table = np.zeros(len(xyz), [(name, order + kind) for name, kind in fields])
    for i, name in enumerate("xyz"):
        table[name] = xyz[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        if name in (table.dtype.names or ()):
            scale = {"u": 1 if table.dtype[name].itemsize == 1 else 257, "f": 1 / 255}[table.dtype[name].kind]
            table[name] = RGB[: len(xyz), i].astype(float) * scale
    lines = ["ply", f"format {form} 1.0", "comment made here", f"element vertex {len(xyz)}"]
    lines += (
        [f"property {NAMES[kind]} {name}" for name, kind in fields] + ([after] if after else []) + ["end_header", ""]
    )
    body = table.tobytes()
    if form == "ascii":
        body = "\n".join(" ".join(repr(v.item()) for v in row) for row in table).encode()
    return end.join(lines).encode() + body


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form_gives_the_same_points(tmp_path: Path, form: str, end: str) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(ply(form, end=end))
    points = read_ply_points(path)
    np.testing.assert_allclose(points.xyz, XYZ, rtol=1e-7)
    np.testing.assert_array_equal(points.rgb, RGB)
    np.testing.assert_array_equal(points.track_lengths, [0, 0, 0])
    assert [a.dtype.name for a in (points.xyz, points.rgb, points.error)] == ["float64", "uint8", "float32"]


@pytest.mark.parametrize("kind", ["f4", "u2"])
def test_wide_colours_are_scaled(tmp_path: Path, kind: str) -> None:
    fields = FIELDS[:4] + [(name, kind) for name in ("red", "green", "blue")]
    path = tmp_path / "a.ply"
    path.write_bytes(ply("binary_little_endian", fields))
    np.testing.assert_array_equal(read_ply_points(path).rgb, RGB)


def test_points_without_colour_are_grey_and_nan_is_left_out(tmp_path: Path) -> None:
    xyz = XYZ.copy()
    xyz[1, 1] = np.nan
    for form in ("ascii", "binary_little_endian"):
        path = tmp_path / "a.ply"
        path.write_bytes(ply(form, FIELDS[:4], xyz))
        points = read_ply_points(path)
        np.testing.assert_allclose(points.xyz, XYZ[[0, 2]], rtol=1e-7)
        assert (points.rgb == 128).all()
    path.write_bytes(ply("binary_little_endian", xyz=XYZ[:0]))
    assert read_ply_points(path).num_points == 0


def test_faces_behind_the_points_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(ply("ascii", after="element face 1\nproperty list uchar int vertex_indices") + b"\n3 0 1 2\n")
    np.testing.assert_allclose(read_ply_points(path).xyz, XYZ, rtol=1e-7)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_a_truncated_file_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.ply"
    whole = ply(form)
    path.write_bytes(whole[:-2])
    with pytest.raises(DatasetError, match=r"a\.ply: .*expected 3 vertices .*, got .*truncated"):
        read_ply_points(path)
    path.write_bytes(whole.replace(b"element vertex 3", b"element vertex 3000000000000000000000"))
    with pytest.raises(DatasetError, match=r"expected 3000000000000000000000 vertices"):
        read_ply_points(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"obj\n", "expected a PLY header"),
        (b"end_header", b"end", "expected a PLY header"),
        (b"format ascii", b"format binary_middle_endian", "expected 'format ascii"),
        (b"element vertex 3", b"element vertex many", "expected .*'element NAME COUNT', got 'element vertex many'"),
        (b"property float nx", b"property list uchar int nx", "expected scalar vertex properties"),
        (b"float nx", b"half nx", "expected scalar vertex properties"),
        (b"float x", b"float u", r"expected a format and vertices with x, y, z, got properties \['nx', 'u'"),
        (b"float nx", b"float x", "expected a format and vertices"),
        (b"element vertex 3", b"element face 2\nelement vertex 3", "expected vertices first, got element 'face'"),
        (b"1.5", b"one", "expected numbers .*, got"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "a.ply"
    whole = ply("ascii")
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        read_ply_points(path)

"""Marks of photo files: a change in place is found out, what is known is not read again."""

import os
from pathlib import Path

import numpy as np
import pytest

from infnerf_tiles.data import marks
from infnerf_tiles.data.marks import PhotoMarks, check_digest, file_digest, read_marks
from infnerf_tiles.data.photos import PhotoFile, decode_masked_photo
from infnerf_tiles.errors import PhotoError


@pytest.fixture
def paths(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    found = [tmp_path / f"{i}.bin" for i in range(130)]
    for path in found:
        path.write_bytes(rng.bytes(200))
    return found


def edited(path: Path) -> None:
    """One byte in the middle is another one; neither size nor time tell."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_marks_tell_files_apart(paths: list[Path]) -> None:
    first = read_marks(paths, [None] * len(paths))
    assert (first.num_bytes == 200).all()
    assert len({digest.tobytes() for digest in first.digest}) == len(paths)
    edited(paths[7])
    paths[9].unlink()
    now = read_marks(paths, [None] * len(paths))
    assert np.flatnonzero((now.digest != first.digest).any(axis=1)).tolist() == [7, 9]
    assert now.num_bytes[9] == -1
    assert read_marks([], []).digest.shape == (0, marks.DIGEST_BYTES)


def test_only_files_of_another_size_or_time_are_read_again(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_marks(paths, [None] * len(paths))
    read: list[Path] = []

    def counted(path: Path) -> bytes:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(marks, "file_digest", counted)
    paths[3].write_bytes(b"other")
    os.utime(paths[5], ns=(0, 0))
    edited(paths[6])
    now = read_marks(paths, [None] * len(paths), first)
    assert sorted(read) == [paths[3], paths[5]]
    assert np.flatnonzero((now.digest != first.digest).any(axis=1)).tolist() == [3]
    assert now.mtime_ns[5] == 0


def test_a_photo_is_decoded_only_if_it_is_the_one(paths: list[Path]) -> None:
    digest = file_digest(paths[0])
    check_digest(paths[0], None, digest)
    edited(paths[0])
    with pytest.raises(PhotoError, match=r"0.bin: expected the photo as it was .*train --accept-changes"):
        decode_masked_photo(PhotoFile(path=paths[0], digest=digest))
    with pytest.raises(PhotoError, match=r"gone.bin: expected a readable photo"):
        check_digest(paths[0].with_name("gone.bin"), None, digest)


def test_a_mask_is_part_of_its_photos_mark(paths: list[Path]) -> None:
    photos, masks = paths[:3], [paths[10], None, paths[11]]
    first = read_marks(photos, masks)
    assert first.num_bytes.tolist() == [400, 200, 400]
    assert read_marks(photos[1:2], [None]).digest.tobytes() == file_digest(photos[1])
    # taken away, put there, changed so that neither size nor time tell
    for now in ([None, None, paths[11]], [paths[10], paths[12], paths[11]], [paths[10], None, paths[13]]):
        changed = read_marks(photos, now, first).num_bytes != first.num_bytes
        assert changed.tolist() == [a is not b and (a is None or b is None) for a, b in zip(now, masks, strict=True)]
    edited(paths[10])
    assert np.array_equal(read_marks(photos, masks, first).digest, first.digest)
    assert (read_marks(photos, masks).digest != first.digest).any(axis=1).tolist() == [True, False, False]
    with pytest.raises(PhotoError, match=r"0.bin: expected the photo and its mask .*10.bin as they were"):
        decode_masked_photo(PhotoFile(path=photos[0], mask_path=masks[0], digest=first.digest[0].tobytes()))
    paths[11].unlink()
    assert read_marks(photos, masks).num_bytes.tolist() == [400, 200, -1]
    with pytest.raises(PhotoError, match=r"11.bin: expected a readable photo or mask"):
        check_digest(photos[2], masks[2], first.digest[2].tobytes())


def test_marks_belong_to_the_same_files() -> None:
    with pytest.raises(ValueError, match="digest"):
        PhotoMarks(num_bytes=np.zeros(2, np.int64), mtime_ns=np.zeros(2, np.int64), digest=np.zeros((1, 16), np.uint8))

"""Masked photos and the cache that holds them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from capture_files import HEIGHT, WIDTH, texture, write_jpeg, write_png
from hypothesis import given
from hypothesis import strategies as st

from infnerf_tiles.data import photos
from infnerf_tiles.data.photos import DecodedPhoto, PhotoCache, PhotoFile, decode_masked_photo
from infnerf_tiles.errors import PhotoError


def black_photo(num_pixels: int) -> DecodedPhoto:
    return DecodedPhoto(rgb=np.zeros((1, num_pixels, 3), np.uint8))


def test_the_masks_of_file_and_alpha_combine(tmp_path: Path) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :8] = 0
    alpha[0, 8] = 254
    keep = np.ones((HEIGHT, WIDTH), np.uint8)
    keep[:4] = 0
    path = write_png(tmp_path / "a.png", np.dstack([texture(), alpha]))
    mask_path = write_png(tmp_path / "m.png", keep)

    assert decode_masked_photo(PhotoFile(path=path)).mask is None
    by_alpha = decode_masked_photo(PhotoFile(path=path, alpha_as_mask=True)).mask
    np.testing.assert_array_equal(by_alpha, alpha == 255)
    by_file = decode_masked_photo(PhotoFile(path=path, mask_path=mask_path)).mask
    np.testing.assert_array_equal(by_file, keep != 0)
    both = decode_masked_photo(PhotoFile(path=path, mask_path=mask_path, alpha_as_mask=True)).mask
    np.testing.assert_array_equal(both, (alpha == 255) & (keep != 0))
    reduced = decode_masked_photo(PhotoFile(path=path, mask_path=mask_path, downscale=4, size=(20, 15)))
    assert reduced.mask is not None
    assert reduced.rgb.shape == (15, 20, 3)
    np.testing.assert_array_equal(reduced.mask, np.arange(15)[:, None] + np.zeros(20) >= 1)


def test_a_mask_that_hides_nothing_is_none(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg")
    mask_path = write_png(tmp_path / "m.png", np.full((HEIGHT, WIDTH), 9, np.uint8))
    assert decode_masked_photo(PhotoFile(path=path, mask_path=mask_path)).mask is None


def test_sizes_that_disagree_are_refused(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match=r"a\.jpg: expected 40x30 at 1/1 size, got 80x60; the photo was changed"):
        decode_masked_photo(PhotoFile(path=path, size=(40, 30)))
    mask_path = write_png(tmp_path / "m.png", np.full((HEIGHT, WIDTH + 1), 9, np.uint8))
    with pytest.raises(PhotoError, match=r"m\.png: expected a mask of 80x60 .*, got 81x60"):
        decode_masked_photo(PhotoFile(path=path, mask_path=mask_path))


def test_the_second_time_comes_from_memory(tmp_path: Path) -> None:
    cache = PhotoCache(1 << 20)
    file = PhotoFile(path=write_jpeg(tmp_path / "a.jpg"))
    first = cache.get(file)
    file.path.unlink()
    assert cache.get(file) is first
    assert (cache.num_hits, cache.num_misses, len(cache)) == (1, 1, 1)
    assert cache.num_bytes == WIDTH * HEIGHT * 3
    with pytest.raises(PhotoError):
        cache.get(PhotoFile(path=file.path, downscale=2))
    assert len(cache) == 1
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "decode_masked_photo", lambda file: black_photo(10))
    a, b, c = (PhotoFile(path=Path(name)) for name in "abc")
    cache = PhotoCache(60)
    cache.get(a)
    cache.get(b)
    cache.get(a)
    cache.get(c)
    assert [file in cache for file in (a, b, c)] == [True, False, True]


@given(
    budget=st.integers(0, 300),
    accesses=st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=60),
)
def test_the_total_is_the_sum_of_the_entries_and_within_budget(budget: int, accesses: list[tuple[int, bool]]) -> None:
    def decode(file: PhotoFile) -> DecodedPhoto:
        number = int(file.path.name)
        if number == 5:
            raise PhotoError("no such photo")
        return black_photo(1 + 7 * number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "decode_masked_photo", decode)
        cache = PhotoCache(budget)
        newest = None
        for number, clear in accesses:
            file = PhotoFile(path=Path(str(number)))
            if clear:
                cache.clear()
            if number == 5:
                with pytest.raises(PhotoError):
                    cache.get(file)
            else:
                newest = cache.get(file)
                assert newest.num_bytes == 3 + 21 * number
                assert (file in cache) == (newest.num_bytes <= budget)
            held = [PhotoFile(path=Path(str(i))) for i in range(9) if PhotoFile(path=Path(str(i))) in cache]
            assert len(held) == len(cache)
            assert cache.num_bytes == sum(cache.get(file).num_bytes for file in held) <= budget


def test_threads_that_want_the_same_photo_decode_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    all_waiting = threading.Barrier(2)

    def decode(file: PhotoFile) -> DecodedPhoto:
        calls.append(file)
        all_waiting.wait(timeout=10)
        return black_photo(10)

    monkeypatch.setattr(photos, "decode_masked_photo", decode)
    cache = PhotoCache(1000)
    file = PhotoFile(path=Path("a"))
    with ThreadPoolExecutor(4) as pool:
        wanted = [pool.submit(cache.get, file) for _ in range(4)]
        while cache.num_misses < 4 and not any(future.done() for future in wanted):
            pass
        all_waiting.wait(timeout=10)
        got = [future.result(timeout=10) for future in wanted]
    assert len(calls) == 1
    assert all(photo is got[0] for photo in got)
    assert cache.num_bytes == 30


def test_a_failure_reaches_every_waiting_thread_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Barrier(2)

    def decode(file: PhotoFile) -> DecodedPhoto:
        started.wait(timeout=10)
        raise PhotoError("broken")

    monkeypatch.setattr(photos, "decode_masked_photo", decode)
    cache = PhotoCache(1000)
    file = PhotoFile(path=Path("a"))
    with ThreadPoolExecutor(3) as pool:
        wanted = [pool.submit(cache.get, file) for _ in range(3)]
        while cache.num_misses < 3:
            pass
        started.wait(timeout=10)
        for future in wanted:
            with pytest.raises(PhotoError, match="broken"):
                future.result(timeout=10)
    monkeypatch.setattr(photos, "decode_masked_photo", lambda file: black_photo(1))
    assert cache.get(file).num_bytes == 3


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a budget of 0 bytes or more, got -1"):
        PhotoCache(-1)

"""Choosing the test photos."""

from pathlib import Path

import numpy as np
import pytest
from capture_files import write_json

from infnerf_tiles.data.splits import every_kth, match_names, read_name_list, read_split_file
from infnerf_tiles.errors import DatasetError, SettingsError

NAMES = [f"{i:02d}.jpg" for i in range(20)]


def test_every_kth_goes_by_name_not_by_order(rng: np.random.Generator) -> None:
    expected = {"00.jpg", "08.jpg", "16.jpg"}
    for order in (np.arange(20), np.arange(20)[::-1], rng.permutation(20)):
        names = [NAMES[i] for i in order]
        is_test = every_kth(names, 8)
        assert is_test.dtype == np.bool_
        assert {name for name, test in zip(names, is_test, strict=True) if test} == expected


def test_every_kth_always_leaves_something_to_train_on() -> None:
    assert not every_kth(NAMES, 0).any()
    assert not every_kth(NAMES[:1], 8).any()
    assert every_kth(NAMES[:2], 2).tolist() == [True, False]
    for k in (1, -8):
        with pytest.raises(SettingsError, match=f"data.test_every: expected 0 .* or at least 2, got {k}"):
            every_kth(NAMES, k)


def test_names_match_exactly_first_then_by_their_end() -> None:
    names = ["images/a.jpg", "a.jpg", "images/north/b.jpg", "images/c.jpg"]
    chosen, missing = match_names(["a.jpg", "./images/c.jpg", "north\\b.jpg", "d.jpg", "mages/a.jpg"], names, "list")
    assert chosen.tolist() == [False, True, True, True]
    assert missing == ("d.jpg", "mages/a.jpg")
    assert match_names(["images/a.jpg"], names, "list")[0].tolist() == [True, False, False, False]


def test_a_name_that_fits_several_photos_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"list\.txt: .*got 'a\.jpg', which fits 2 of them \(x/a\.jpg, y/a\.jpg"):
        match_names(["a.jpg"], ["x/a.jpg", "y/a.jpg"], "list.txt")
    assert match_names(["a.jpg"], ["x/a.jpg", "x/a.jpg"], "list.txt")[0].tolist() == [True, False]


def test_lists_are_text_or_json(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeff# test photos\n\n a.jpg \nдом/b 1.jpg\n", encoding="utf-8")
    assert read_name_list(path) == ("a.jpg", "дом/b 1.jpg")
    assert read_name_list(write_json(tmp_path / "l.json", ["a.jpg", "b.jpg"])) == ("a.jpg", "b.jpg")
    assert read_name_list(write_json(tmp_path / "l.json", {"test": ["a.jpg"], "train": []})) == ("a.jpg",)


@pytest.mark.parametrize("content", [[], {"test": []}, {"train": ["a"]}, [1], 3])
def test_a_list_without_names_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(DatasetError, match=r"list\.json: expected"):
        read_name_list(write_json(tmp_path / "list.json", content))


def test_a_text_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for content in (b"", b"# nothing\n", b"\xff\xfe\xff"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"list\.txt: expected"):
            read_name_list(path)
    with pytest.raises(DatasetError, match=r"gone\.txt: expected a readable list"):
        read_name_list(tmp_path / "gone.txt")


def test_the_split_file(tmp_path: Path) -> None:
    assert read_split_file(tmp_path) is None
    write_json(tmp_path / "split.json", {"rule": "by hand", "test": ["a.jpg"]})
    split = read_split_file(tmp_path)
    assert split is not None
    assert (set(split.test), split.train) == ({"a.jpg"}, None)
    assert split.source == str(tmp_path / "split.json")
    write_json(tmp_path / "split.json", {"test": ["a.jpg"], "train": ["b.jpg"]})
    split = read_split_file(tmp_path)
    assert split is not None
    assert split.train == frozenset({"b.jpg"})


@pytest.mark.parametrize("content", [[], {}, {"test": "a.jpg"}, {"test": [1]}, {"test": ["a"], "train": "b"}])
def test_a_wrong_split_file_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "split.json", content)
    with pytest.raises(DatasetError, match=r"split\.json: expected"):
        read_split_file(tmp_path)

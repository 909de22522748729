"""Settings: defaults, files, overrides and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.settings import Settings, load_settings, parse_settings, parse_stored_settings, setting_paths
from infnerf_tiles.units import format_bytes, parse_bytes, parse_size


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(config: str | Path | None, *overrides: str) -> list[str]:
    """The reported problems, one a line, without the headline."""
    with pytest.raises(SettingsError) as caught:
        load_settings(config, overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_defaults_file_and_overrides_apply_in_that_order(tmp_path: Path) -> None:
    path = write(tmp_path, "[training]\nsteps = 100\nseed = 3\n[field]\nbackground = 'white'\n")
    settings = load_settings(path, ["training.steps=200", "octree.cells=32", "training.steps=300"])
    assert settings.training.steps == 300
    assert settings.training.seed == 3
    assert settings.field.background == "white"
    assert settings.octree.cells == 32
    assert settings.training.lr == Settings().training.lr
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.lr=1e-3", 1e-3),
        ("training.lr= 1 ", 1),
        ("training.steps=1_000", 1000),
        ("training.steps=none", None),
        ("field.background=black", "black"),
        ("field.background='black'", "black"),
        ("field.appearance=false", False),
        ("rendering.memory_budget=2GiB", "2GiB"),
        ("rendering.memory_budget=4096", 4096),
    ],
)
def test_override_values_are_read_as_toml_or_bare_words(text: str, value: object) -> None:
    section, key = text.partition("=")[0].split(".")
    found = getattr(getattr(load_settings(None, [text]), section), key)
    assert found == value
    assert type(found) is type(value) or isinstance(found, float)


def test_all_problems_are_reported_at_once_with_their_dotted_paths(tmp_path: Path) -> None:
    path = write(
        tmp_path, "[octree]\ncells = 60\n[training]\nsteps = '5'\nlambda_rbg = 1.0\n[rendring]\nstep_size = 1\n"
    )
    lines = problems(path, "training.lr=0.0", "field.appearance=1", "nonsense")
    assert sorted(line.partition(":")[0] for line in lines) == sorted(
        [
            "nonsense",
            "octree.cells",
            "training.steps",
            "training.lambda_rbg",
            "rendring",
            "training.lr",
            "field.appearance",
        ]
    )
    text = "\n".join(lines)
    assert "did you mean training.lambda_rgb?" in text
    assert "did you mean rendering?" in text
    assert "power of two" in text
    assert "got '5'" in text


def test_headline_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[octree]\ncells = 60\n")
    with pytest.raises(SettingsError, match=r"mine\.toml: 1 wrong"):
        load_settings(path)


def test_a_key_of_another_section_is_pointed_at_there() -> None:
    assert problems(None, "training.cells=32") == ["training.cells: unknown setting; did you mean octree.cells?"]


@pytest.mark.parametrize(
    "override",
    [
        "training.steps=5e4",  # a float is no count
        "training.steps=true",
        "training.lr=nan",
        "training.lr=inf",
        "training.seed=-1",
        "training.lr_final=0.5",  # above lr
        "training.samples_per_ray=4096 ",  # above samples_per_step once that is small
        "octree.max_level=19",  # ids end at level 18
        "octree.cells=8",
        "octree.reach=0.5",
        "data.test_every=1",
        "rendering.memory_budget=0",
        "rendering.memory_budget=true",
        "rendering.memory_budget=lots",
        "rendering.stop_transmittance=1.0",
        "field.background=blue",
        "field.hidden=none",
        "training=5",
        "training.steps.first=5",
        f"training.steps={'9' * 5000}",
        f"training.steps={'[' * 5000}",
    ],
)
def test_wrong_values_are_refused_by_path(override: str) -> None:
    extra = ["training.samples_per_step=1024"] if "samples_per_ray" in override else []
    lines = problems(None, *extra, override)
    assert len(lines) == 1
    section = override.partition("=")[0].partition(".")[0]
    assert lines[0].startswith(section)
    assert len(lines[0]) < 300


def test_unreadable_files_are_refused_with_their_name(tmp_path: Path) -> None:
    broken = write(tmp_path, "[training\nsteps = 1")
    binary = tmp_path / "photo.toml"
    binary.write_bytes(b"\xff\xd8\xff\xe0")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (2 << 20))
    for path in (broken, binary, huge, tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(SettingsError, match=path.name):
            load_settings(path)


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"aerial, city, demo, ground.*did you mean aerial\?"):
        load_settings("arial")


def test_a_file_and_overrides_change_only_what_they_name_of_the_settings_they_start_from(tmp_path: Path) -> None:
    base = load_settings("demo", ["training.steps=7", "training.lr=0.005"])
    path = write(tmp_path, "[training]\nlr = 0.002\n")
    settings = load_settings(path, ["octree.min_points=3"], base=base)
    assert settings.training.lr == 0.002
    assert settings.octree.min_points == 3
    changed = {"training": {**base.training.model_dump(), "lr": 0.002}}
    changed["octree"] = {**base.octree.model_dump(), "min_points": 3}
    assert settings.model_dump() == {**base.model_dump(), **changed}
    assert load_settings(base=base) == base
    with pytest.raises(SettingsError, match=r"octree: expected a section"):
        load_settings(write(tmp_path, "octree = 5\n"), base=base)


def test_settings_are_immutable() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.training.steps = 5
    with pytest.raises(ValidationError, match="frozen"):
        settings.training = Settings().training


def test_settings_survive_being_stored_as_json() -> None:
    settings = load_settings("city", ["training.steps=600", "rendering.memory_budget=123456"])
    assert parse_settings(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


def test_stored_settings_with_an_unknown_key_are_refused() -> None:
    stored: dict[str, Any] = Settings().model_dump(mode="json")
    stored["training"]["momentum"] = 0.9
    with pytest.raises(SettingsError, match=r"scene a\.zarr.*\n.*training\.momentum"):
        parse_settings(stored, source="scene a.zarr")


def test_how_to_draw_may_have_been_stored_by_a_version_that_allowed_more(caplog: pytest.LogCaptureFixture) -> None:
    stored: dict[str, Any] = Settings().model_dump(mode="json")
    stored["rendering"] |= {"step_size": 0.001, "lod_bias": -40.0}
    for _ in range(2):
        settings = parse_stored_settings(stored, source="scene a.zarr")
    assert (settings.rendering.step_size, settings.rendering.lod_bias) == (1 / 64, -18.0)
    assert caplog.text.count("rendering.step_size: 0.001, which is stored, is not allowed; 0.015625 is taken") == 1
    assert stored["rendering"]["step_size"] == 0.001
    stored["octree"]["cells"] = 8
    with pytest.raises(SettingsError, match=r"1 wrong\n  octree\.cells"):
        parse_stored_settings(stored, source="scene a.zarr")


def test_every_setting_is_described() -> None:
    paths = setting_paths()
    assert "training.lambda_transparency" in paths
    for path in paths:
        section, key = path.split(".")
        model = Settings.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        description = model.model_fields[key].description
        assert description, f"{path} has no description"
        assert description.endswith(".")


def test_memory_budget_in_bytes() -> None:
    assert load_settings(None, ["rendering.memory_budget=1.5GiB"]).rendering.memory_budget_bytes == 3 << 29


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5 kb", 1500),
        ("8g", 8 << 30),
        ("17", 17),
        (17, 17),
        ("1TiB", 1 << 40),
    ],
)
def test_amounts_of_memory(text: str | int, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1GiB", "1e9", "2 GiB free", "2GHz", "0", "0.1", True, 0, "9" * 5000, "9" * 400 + ".5GiB", "9e9GiB"],
)
def test_wrong_amounts_of_memory_are_refused(text: str | int) -> None:
    with pytest.raises(SettingsError, match="amount of memory"):
        parse_bytes(text)


@given(st.integers(min_value=1, max_value=2**62))
def test_formatted_memory_reads_back_within_its_digits(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=0.006)


def test_picture_sizes() -> None:
    assert parse_size("1280x720") == (1280, 720)
    assert parse_size(" 640 X 480 ") == (640, 480)
    for text in ("1280", "1280x", "0x720", "1280x720x3", "-1x5", "99999x1", "1e3x2"):
        with pytest.raises(SettingsError, match=r"picture size|from 1 to"):
            parse_size(text)

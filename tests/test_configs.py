"""The settings files that ship with the package."""

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from infnerf_tiles.settings import Settings, config_names, load_settings

NAMES = ("aerial", "city", "demo", "ground")


def test_the_package_ships_its_settings_files() -> None:
    assert config_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_every_line_of_it_changes_a_default(name: str) -> None:
    text = (resources.files("infnerf_tiles.configs") / f"{name}.toml").read_text(encoding="utf-8")
    defaults = Settings().model_dump()
    settings = load_settings(name).model_dump()
    for section, values in tomllib.loads(text).items():
        for key, value in values.items():
            assert settings[section][key] == value
            assert value != defaults[section][key], f"{section}.{key} repeats the default"


@pytest.mark.parametrize("name", NAMES)
def test_config_is_short_and_gives_a_reason_for_every_value(name: str) -> None:
    text = (resources.files("infnerf_tiles.configs") / f"{name}.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 25
    assert lines[0].startswith("# ")
    for line in lines:
        if "=" in line.partition("#")[0]:
            assert len(line.partition("#")[2].strip()) >= 20, f"no reason given: {line}"


def test_name_and_path_of_a_config_give_the_same_settings() -> None:
    with resources.as_file(resources.files("infnerf_tiles.configs") / "aerial.toml") as path:
        assert load_settings(Path(path)) == load_settings("aerial") == load_settings(str(path))

"""Every command explains itself, and offers exactly the options listed here."""

import contextlib
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import Result

import infnerf_tiles
from infnerf_tiles.cli import main
from infnerf_tiles.settings import Settings, setting_paths

EVERYWHERE = {"-h", "--help", "--json", "--log-file", "--quiet", "-q", "--verbose", "-v"}
SETTINGS = {"--config", "--set", "--list-settings"}
DRAWING = {"--lod-bias", "--memory-budget", "--threads"}
PLACE = {"--workers", "--scheduler", "--request", "--threads"}
BUDGETS = {"--ram", "--vram", "--scratch"}
OPTIONS = {
    "plan": {"DATA", "--images", "--bounds", "--no-photos", "--threads"} | BUDGETS | SETTINGS,
    "demo": {"[DIR]", "--photos", "--size", "--frames", "--threads", "--device"} | SETTINGS,
    "build": {"DATA", "SCENE", "--images", "--crs", "--bounds", "--overwrite", "--add", "--coverage-map"}
    | BUDGETS
    | SETTINGS,
    "train": {"SCENE", "--data", "--images", "--redo", "--accept-changes"} | BUDGETS | PLACE | SETTINGS,
    "eval": {"SCENE", "--data", "--images", "--split", "--limit", "--device"} | DRAWING | SETTINGS,
    "render": {"SCENE", "-o", "--output", "--path", "--photo", "--frames", "--fps", "--size", "--appearance"}
    | {"--depth", "--depth-format", "--alpha", "--levels", "--device"}
    | DRAWING
    | SETTINGS,
    "view": {"SCENE", "--host", "--port", "--memory-budget", "--threads", "--max-width", "--device"},
    "export": {"SCENE", "OUT", "--what", "--pyramid", "--node", "--max-points", "--depth-format", "--appearance"}
    | {"--memory-budget", "--threads", "--device"},
    "info": {"SCENE", "--treelets"},
    "verify": {"SCENE", "--repair"},
    "gc": {"SCENE"},
    "pack": {"SCENE", "OUT", "--nodes-per-shard"},
}
"""What a script may rely on: taking something away from here breaks somebody."""


def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    assert all(found.values())
    return {name: command for name, command in found.items() if command is not None}


def test_the_commands_and_options_are_those_listed() -> None:
    offered = {}
    for name, command in commands().items():
        names: set[str] = set()
        for param in command.get_params(click.Context(command, **command.context_settings)):
            names |= {param.human_readable_name} if isinstance(param, click.Argument) else {*param.opts}
        offered[name] = names - EVERYWHERE
        assert names >= EVERYWHERE, name
    assert offered == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_help_explains_every_option_and_gives_examples(name: str, cli: Callable[..., Result]) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    command = commands()[name]
    for param in command.get_params(click.Context(command, **command.context_settings)):
        if isinstance(param, click.Option):
            assert param.help, f"{name} {param.name} has no help"
            assert param.help.rstrip().endswith((".", ")")), f"{name} {param.name}: {param.help}"
            assert any(opt in result.stdout for opt in param.opts)
        else:
            assert param.human_readable_name.strip("[]") in (command.help or ""), (
                f"{name}: {param.name} is not explained"
            )
    examples = [line for line in result.stdout.splitlines() if line.strip().startswith(f"infnerf-tiles {name}")]
    assert examples
    assert command.short_help


@pytest.mark.parametrize("name", OPTIONS)
def test_the_examples_in_the_help_are_valid_command_lines(name: str) -> None:
    command = commands()[name]
    for line in (command.help or "").splitlines():
        words = line.split("&&")[0].split()
        if words[:2] == ["infnerf-tiles", name]:
            with contextlib.suppress(click.exceptions.Exit):  # of --list-settings; a usage error goes through
                command.make_context(name, words[2:])


def test_the_list_of_commands_has_a_line_for_each(cli: Callable[..., Result]) -> None:
    result = cli("--help")
    assert result.exit_code == 0
    for name, command in commands().items():
        assert any(line.split()[:1] == [name] and line.rstrip().endswith(".") for line in result.stdout.splitlines())
        assert "..." not in (command.short_help or "")
    assert "Exit codes" in result.stdout


def test_version(cli: Callable[..., Result]) -> None:
    assert infnerf_tiles.__version__ in cli("--version").stdout


def test_every_setting_can_be_listed(cli: Callable[..., Result]) -> None:
    lines = cli("build", "--list-settings").stdout.splitlines()
    listed = [line.partition(" = ")[0] for line in lines if not line.startswith(" ")]
    assert tuple(listed) == setting_paths()
    assert f"training.passes = {Settings().training.passes}" in lines
    assert "training.steps = none" in lines


def test_python_m_runs_the_same_program() -> None:
    command = [sys.executable, "-m", "infnerf_tiles", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    assert infnerf_tiles.__version__ in done.stdout
    assert done.stdout.startswith("infnerf-tiles")


def test_help_does_not_load_the_slow_libraries() -> None:
    code = "import sys, infnerf_tiles.cli as c; c.main(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch", "numba", "dask", "av"} & set(done.stdout.split())

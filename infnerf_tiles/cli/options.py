"""Options that several commands share, and the types of what people write after them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.units import parse_bytes, parse_size

_F = TypeVar("_F", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number in a range; unlike click's own type it refuses NaN, which is in no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return number


def bytes_of(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes an amount of memory: the bytes, or a usage error."""
    try:
        return None if value is None else parse_bytes(value)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from error


def size_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Callback of an option that takes a picture size: (width, height) in pixels, or a usage error."""
    try:
        return None if value is None else parse_size(value)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from error


def bounds_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Callback of an option that takes a box x,y,z,X,Y,Z: six numbers, the first three below the last three."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    good = len(numbers) == 6 and all(math.isfinite(number) for number in numbers)
    if not good or not all(low < high for low, high in zip(numbers[:3], numbers[3:], strict=True)):
        raise click.BadParameter(f"expected x,y,z,X,Y,Z with x < X, y < Y and z < Z, got {value!r}")
    return numbers


def device_option(function: _F) -> _F:
    """--device."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where to compute; auto (the default, unless a setting says otherwise) takes a GPU where there is one.",
    )(function)


def scene_argument(function: _F) -> _F:
    """SCENE."""
    return click.argument("scene")(function)


def settings_options(function: _F) -> _F:
    """--config, --set and --list-settings."""
    for option in (
        click.option(
            "--list-settings",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_list_settings,
            help="Print every setting with its default and its meaning, and stop.",
        ),
        click.option(
            "--set",
            "overrides",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change one setting, such as training.passes=5; may be repeated and wins over --config.",
        ),
        click.option(
            "--config",
            metavar="NAME|FILE",
            help="Settings file: one that ships with the package (aerial, city, demo, ground) or a .toml file.",
        ),
    ):
        function = option(function)
    return function


def requests_of(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> dict[str, float]:
    """Callback of an option NAME=AMOUNT that may be repeated: the amounts by name, or a usage error."""
    found = {}
    for text in value:
        name, amount = text.partition("=")[::2]
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            raise click.BadParameter(f"expected NAME=AMOUNT such as GPU=1, got {text!r}") from None
        if not name.strip() or not 0 < found[name.strip()] < math.inf:
            raise click.BadParameter(f"expected NAME=AMOUNT such as GPU=1, got {text!r}")
    return found


def budget_options(function: _F) -> _F:
    """--ram, --vram and --scratch."""
    for name, help_text in (
        ("--scratch", "Most disk for pixels of treelets in waiting, such as 200GiB; default: half of what is free."),
        ("--vram", "Most memory of one CUDA device, such as 10GiB."),
        ("--ram", "Most memory of one process, such as 4GiB; what cannot fit is refused with the nearest that would."),
    ):
        function = click.option(name, metavar="BYTES", callback=bytes_of, help=help_text)(function)
    return function


def place_options(function: _F) -> _F:
    """--workers, --scheduler, --request and --threads."""
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="Processor threads per treelet; default: all cores, divided among the workers.",
        ),
        click.option(
            "--request",
            "requests",
            multiple=True,
            callback=requests_of,
            metavar="NAME=AMOUNT",
            help="dask resource that a worker must offer to be given a treelet; default: GPU=1 where there are any.",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Train on a running dask cluster, such as tcp://host:8786; its workers must reach SCENE and DATA.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            metavar="N",
            help="Worker processes on this machine; 0 (the default unless there are several GPUs): none but this one.",
        ),
    ):
        function = option(function)
    return function


def terminal_options(function: _F) -> _F:
    """-v, -q and --log-file."""
    for option in (
        click.option(
            "--log-file",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Append everything that happens, in detail, to this file.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show errors only (and the JSON, with --json)."),
        click.option(
            "-v",
            "--verbose",
            count=True,
            help="Tell more on stderr; twice: everything, and where in the program an error arose.",
        ),
    ):
        function = option(function)
    return function


def json_option(function: _F) -> _F:
    """--json."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the result as one JSON object on stdout; everything else goes to stderr.",
    )(function)


def _list_settings(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from infnerf_tiles.settings import describe_settings

    for path, default, meaning in describe_settings():
        click.echo(f"{path} = {default}\n    {meaning}")
    ctx.exit()

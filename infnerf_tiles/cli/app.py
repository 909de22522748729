"""The group of all commands, and what happens to every one of them when it fails."""

import difflib
import errno
import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from infnerf_tiles import __version__
from infnerf_tiles.cli.options import json_option, terminal_options
from infnerf_tiles.cli.terminal import Terminal
from infnerf_tiles.errors import DataError, InfnerfError

DATA_ERROR = DataError.exit_code
INTERRUPTED = 130
OUT_OF_MEMORY = 4
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_SHARED = ("overrides", "config", "list_settings", "as_json", "verbose", "quiet", "log_file")
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Lazy(click.Group):
    """Loads a module of commands when one of its commands is named, so that --help does not load numba and torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people meet them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        import importlib

        try:
            module = importlib.import_module(f"infnerf_tiles.cli.{_COMMANDS[cmd_name]}")
        except KeyboardInterrupt:  # click would make it exit code 1
            click.echo("error: interrupted; run the same command again", err=True)
            ctx.exit(INTERRUPTED)
        found = getattr(module, f"{cmd_name}_command")
        if not isinstance(found, click.Command):
            raise TypeError(f"{cmd_name}: expected a click command, got {type(found).__name__}")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; the usage error for an unknown command names the nearest one."""
        near = difflib.get_close_matches(args[0], _COMMANDS, n=1) if args[0] not in _COMMANDS else []
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{near[0]}'?", ctx) from error


_COMMANDS = {
    "demo": "demo",
    "plan": "planning",
    "build": "training",
    "train": "training",
    "eval": "pictures",
    "render": "pictures",
    "view": "viewing",
    "export": "exporting",
    "info": "upkeep",
    "verify": "upkeep",
    "gc": "upkeep",
    "pack": "upkeep",
}


class _Command(click.Command):
    """A command that refuses empty values: a path of no characters would be the working folder."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click; UsageError for an empty value."""
        rest = super().parse_args(ctx, list(args))
        if not ctx.resilient_parsing:
            values, _, given = self.make_parser(ctx).parse_args(list(args))
            for param in given:
                value = values.get(param.name or "")
                texts = value if isinstance(value, tuple | list) else (value,)
                if any(isinstance(text, str) and not text.strip() for text in texts):
                    raise click.BadParameter("expected a value, got an empty one; is a variable not set?", ctx, param)
        return rest


@click.group(cls=_Lazy, context_settings=_CONTEXT)
@click.version_option(__version__, "--version", prog_name="infnerf-tiles", help="Print the version and stop.")
def main() -> None:
    """Turn posed photos of a place of any size into a level-of-detail radiance field, and draw pictures of it.

    \b
    Examples:
      infnerf-tiles demo                         everything on a small synthetic city
      infnerf-tiles plan PHOTOS                  what it would take
      infnerf-tiles build PHOTOS city.zarr       your own photos: COLMAP or transforms.json
      infnerf-tiles train city.zarr
      infnerf-tiles render city.zarr -o city.mp4

    Exit codes: 0 success, 1 failure, 2 wrong usage or setting, 3 photos or poses that cannot be used, 4 memory or disk
    does not suffice, 5 damaged or missing scene, 130 interrupted.
    """


def command(
    name: str, summary: str, *, on_interrupt: str = "run the same command again", json: bool = True
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a click command of `function(terminal, **parameters)`, which returns its exit code (None: success).

    Adds -v, -q, --log-file and (with `json`) --json; sets up the log; turns failures into messages and exit codes.
    summary: for the list of commands. on_interrupt: what to tell after Ctrl-C.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def run(*, verbose: int, quiet: bool, log_file: Path | None, as_json: bool = False, **parameters: Any) -> None:
            terminal = Terminal(verbosity=-1 if quiet else verbose, json=as_json)
            with ExitStack() as stack:
                try:
                    stack.enter_context(terminal.logging(log_file))
                except OSError as error:
                    raise click.UsageError(f"--log-file: {_os_message(error)}") from error
                code = _guarded(functools.partial(function, terminal, **parameters), terminal, on_interrupt)
                terminal.peak()
            if code:
                sys.exit(code)

        wrapped: Callable[..., None] = terminal_options(run)
        if json:
            wrapped = json_option(wrapped)
        made = click.command(name, cls=_Command, short_help=summary, context_settings=_CONTEXT)(wrapped)
        # what is special to the command is read first
        made.params.sort(key=lambda param: _SHARED.index(param.name) if param.name in _SHARED else -1)
        return made

    return decorate


def _guarded(work: Callable[[], int | None], terminal: Terminal, on_interrupt: str) -> int:
    """The exit code of some work; its failures are told on stderr."""
    try:
        return work() or 0
    except InfnerfError as error:
        terminal.trace(error)
        terminal.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        terminal.error(f"interrupted; {on_interrupt}")
        return INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # for click, which ends quietly
            raise
        terminal.trace(error)
        terminal.error(_os_message(error))
        return OUT_OF_MEMORY if error.errno in _FULL else 1
    except Exception as error:
        if _is_out_of_memory(error):
            return _out_of_memory(terminal, error)
        terminal.log_trace(error)  # Python shows it on stderr
        raise


def _out_of_memory(terminal: Terminal, error: BaseException) -> int:
    terminal.trace(error)
    terminal.error(
        f"out of memory ({str(error).splitlines()[0] if str(error) else 'the system gave no more'}); close other "
        "programs, or ask for less: build with a larger data.downscale or a smaller octree.treelet_height, train with "
        "a smaller training.samples_per_step or training.seed_nodes, render with a smaller --memory-budget or --size"
    )
    return OUT_OF_MEMORY


def _is_out_of_memory(error: Exception) -> bool:
    """Whether there is no more memory; torch has no class of its own for that of the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _os_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    advice = "; see to it that you may read and write there, or work on a copy" if error.errno in _FORBIDDEN else ""
    return f"{where}{error.strerror or error}{advice}"

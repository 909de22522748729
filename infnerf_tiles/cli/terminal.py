"""What a command says and where: results on stdout, everything else on stderr, all of it in the log file."""

import json
import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from infnerf_tiles.process import peak_memory
from infnerf_tiles.units import format_bytes

_WIDTH_OFF_TERMINAL = 120
_LOGGER = "infnerf_tiles"


class Terminal:
    """The output of one command.

    verbosity: -1 (only errors) to 2 (everything, with tracebacks). json: the result is one JSON object on stdout.
    """

    def __init__(self, *, verbosity: int = 0, json: bool = False) -> None:
        self.verbosity = verbosity
        self.json = json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @property
    def quiet(self) -> bool:
        """Whether only errors (and JSON, if asked for) are shown."""
        return self.verbosity < 0

    def say(self, text: str) -> None:
        """One line about how the work goes, on stderr; -q leaves it out."""
        logging.getLogger(f"{_LOGGER}.cli").debug("%s", text)
        if not self.quiet:
            self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def error(self, text: str) -> None:
        """Why the command failed, on stderr, always."""
        logging.getLogger(f"{_LOGGER}.cli").debug("error: %s", text)
        self.err.print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)

    def trace(self, error: BaseException) -> None:
        """The traceback of an error: in the log file, and on stderr with -vv."""
        text = self.log_trace(error)
        if self.verbosity >= 2:
            self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def log_trace(self, error: BaseException) -> str:
        """The traceback of an error, which goes to the log file only."""
        text = "".join(traceback.format_exception(error)).rstrip()
        logging.getLogger(f"{_LOGGER}.cli").debug("%s", text)
        return text

    def result(self, document: Mapping[str, Any], *views: RenderableType) -> None:
        """The result of the command: `document` as JSON if that was asked for, else the views for people."""
        if self.json:
            click.echo(json.dumps(_plain(document), ensure_ascii=True, allow_nan=False))
        elif not self.quiet:
            for view in views:
                self.out.print(view, highlight=False)

    def peak(self) -> None:
        """Say how much memory the process took at most."""
        if peak := peak_memory():
            self.say(f"peak memory {format_bytes(peak)}")

    def progress(self) -> Progress:
        """Bars with a count and an ETA, live on a terminal and absent elsewhere."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.err,
            disable=self.quiet or not self.err.is_terminal,
            transient=True,
        )

    @contextmanager
    def logging(self, log_file: Path | None) -> Iterator[None]:
        """Route the package's log and Python's warnings to stderr and the log file, as long as the command runs."""
        logger, warnings = logging.getLogger(_LOGGER), logging.getLogger("py.warnings")
        handlers: list[logging.Handler] = [_ConsoleHandler(self.err, self.verbosity)]
        if log_file is not None:
            to_file = logging.FileHandler(log_file, encoding="utf-8")
            to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            handlers.append(to_file)
        lowest = logging.DEBUG if log_file is not None else handlers[0].level
        before = [(log, log.level, log.propagate) for log in (logger, warnings)]
        for log in (logger, warnings):
            log.setLevel(lowest)
            log.propagate = False
            for handler in handlers:
                log.addHandler(handler)
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for log, level, propagate in before:
                log.setLevel(level)
                log.propagate = propagate
                for handler in handlers:
                    log.removeHandler(handler)
            for handler in handlers:
                handler.close()


class _ConsoleHandler(logging.Handler):
    """Log lines through the console that draws the progress bars, so that they stand above them."""

    def __init__(self, console: Console, verbosity: int) -> None:
        super().__init__({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))
        self._console = console
        # what the command itself says is on the console already
        self.addFilter(lambda record: record.name != f"{_LOGGER}.cli")

    def emit(self, record: logging.LogRecord) -> None:
        name = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._console.print(f"{name}{record.getMessage()}", markup=False, highlight=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """A table of text under a title; columns whose first cell is a number are flush right."""
    made = Table(header_style="bold")
    for at, column in enumerate(columns):
        number = bool(rows) and isinstance(rows[0][at], int | float)
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return _titled(title, made)


def facts_table(title: str, facts: Mapping[str, object]) -> RenderableType:
    """Names and values without a header, under a title."""
    made = Table(show_header=False)
    made.add_column()
    made.add_column(overflow="fold")
    for name, value in facts.items():
        made.add_row(name, _cell(value))
    return _titled(title, made)


def _titled(title: str, body: Table) -> RenderableType:
    # a table's own title is wrapped to the width of the table
    return Group(Text(f"\n{title}", style="italic"), body)


def _cell(value: object) -> Text:
    return Text(f"{value:,}" if isinstance(value, int) else str(value))


def size_text(amount: int | None) -> str:
    """Bytes for people; a dash where they are not known."""
    return "–" if amount is None else format_bytes(amount)


def decibel(value: float | None) -> str:
    """A PSNR for people; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.2f}"


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = _WIDTH_OFF_TERMINAL
    return console


def _plain(value: Any) -> Any:
    """JSON values: tuples become lists, numbers that JSON does not have become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

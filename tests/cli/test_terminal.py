"""What a command says, where, and how it ends when something breaks."""

import contextlib
import errno
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from infnerf_tiles.cli import progress
from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.progress import TrainingDisplay
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, table
from infnerf_tiles.errors import BudgetError, TrainingError


def run(function: Callable[[Terminal], int | None], *arguments: str) -> Result:
    """A command with this body, run in-process."""
    made: click.Command = command("work", "Works.", on_interrupt="do it again")(function)
    return CliRunner().invoke(made, list(arguments))


def raising(error: BaseException) -> Callable[[Terminal], int | None]:
    def work(terminal: Terminal) -> int | None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TrainingError("it went wrong"), 1, "error: it went wrong"),
        (BudgetError("too little"), 4, "error: too little"),
        (KeyboardInterrupt(), 130, "error: interrupted; do it again"),
        (MemoryError(), 4, "data.downscale"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"), 4, "--memory-budget"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 4, "error: a/b: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: Permission denied; see to it that"),
    ],
)
def test_failures_become_a_message_and_an_exit_code(error: BaseException, code: int, words: str) -> None:
    result = run(raising(error))
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_bug_is_not_dressed_up_and_lands_in_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    result = run(raising(ZeroDivisionError("a bug")), "--log-file", str(log))
    assert isinstance(result.exception, ZeroDivisionError)
    assert "ZeroDivisionError: a bug" in log.read_text()


def test_the_exit_code_of_a_command_is_what_it_returns() -> None:
    assert run(lambda terminal: None).exit_code == 0
    assert run(lambda terminal: 5).exit_code == 5


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["-q"], {"error"}),
        ([], {"warning", "error", "python"}),
        (["-v"], {"info", "warning", "error", "python"}),
        (["-vv"], {"debug", "info", "warning", "error", "python"}),
    ],
)
def test_verbosity(flags: list[str], shown: set[str]) -> None:
    def work(terminal: Terminal) -> None:
        log = logging.getLogger("infnerf_tiles.some.module")
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("a line of %s [not markup]", level)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("a line of python", stacklevel=1)

    text = run(work, *flags).stderr
    assert {name for name in ("debug", "info", "warning", "error", "python") if f"a line of {name}" in text} == shown
    assert "[not markup]" in text


def test_logging_is_as_before_when_a_command_has_ended() -> None:
    logger = logging.getLogger("infnerf_tiles")
    before = (logger.level, logger.propagate, list(logger.handlers))
    run(lambda terminal: None, "-vv")
    run(raising(TrainingError("it went wrong")), "-vv")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_json_is_one_object_of_json_values_only() -> None:
    def work(terminal: Terminal) -> None:
        terminal.say("hello")
        terminal.result({"name": "Łódź", "nan": float("nan"), "deep": ({"inf": float("inf")},), "n": 1}, "not shown")

    result = run(work, "--json", "-q")
    assert json.loads(result.stdout) == {"name": "Łódź", "nan": None, "deep": [{"inf": None}], "n": 1}
    assert result.stderr == ""
    assert run(work, "-q").stdout == ""
    assert "not shown" in run(work).stdout


def shown(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=60)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_tables_keep_brackets_and_long_titles() -> None:
    title = "a title that is longer than the table below it"
    text = shown(table(title, ("name", "n"), [("[red]x[/red]", 1234)]))
    assert title in text
    assert "[red]x[/red]" in text
    assert "1,234" in text
    assert "[b]" in shown(facts_table(title, {"what": "[b]"}))
    assert shown(table("empty", ("name", "n"), []))


def test_decibel() -> None:
    assert [decibel(value) for value in (20.123, None, float("nan"))] == ["20.12", "–", "–"]


def display(weights: dict[str, float]) -> tuple[TrainingDisplay, io.StringIO]:
    terminal = Terminal()
    text = io.StringIO()
    terminal.err = Console(file=text, width=120)
    return TrainingDisplay(terminal, weights), text


def test_training_says_a_line_per_treelet_that_is_finished() -> None:
    shows, text = display({"seed": 3.0, "L0/0-0-0": 1.0})
    with shows:
        for name in ("seed", "L0/0-0-0", "L2/1-1-1"):
            for share in (0.5, 1.0):
                shows.update(name, share, 20.0 + share)
    lines = text.getvalue().splitlines()
    assert [line.partition(" dB")[0] for line in lines] == [
        "seed stage: 21.00",
        "treelet L0/0-0-0: 21.00",
        "treelet L2/1-1-1: 21.00",
    ]


def test_a_treelet_that_broke_is_not_called_finished() -> None:
    shows, text = display({"L0/0-0-0": 1.0})
    with contextlib.suppress(KeyboardInterrupt), shows:
        shows.update("L0/0-0-0", 0.5, 20.0)
        raise KeyboardInterrupt
    assert text.getvalue() == ""


def test_without_a_terminal_there_is_a_sign_of_life_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_HEARTBEAT", 0.0)
    shows, text = display({"seed": 3.0, "L0/0-0-0": 1.0})
    with shows:
        shows.update("seed", 0.5, 20.0)
    assert "38% of the scene, seed 50%, 20.00 dB, time left: 0:00" in text.getvalue()

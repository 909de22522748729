"""Text that people write for amounts of memory and for picture sizes, turned into numbers and back."""

import re

from infnerf_tiles.errors import SettingsError

MAX_SIDE = 16384
"""Longest side of a picture in pixels; H.264 encoders and PNG viewers give up not far above."""

_BYTES = re.compile(r"\s*(\d{1,19}(?:\.\d{1,19})?)\s*([A-Za-z]*)\s*")
_SIZE = re.compile(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*")
# A bare letter is binary, as in `dd`, `ulimit` and container run times: who writes 8G for memory means 8 GiB.
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", start=1)}
_UNITS |= {f"{letter}{end}": 1024**power for power, letter in enumerate("kmgtp", start=1) for end in ("", "ib")}


def parse_bytes(text: str | int) -> int:
    """Amount of memory in bytes: "2GiB", "500 MB" (powers of 1000), "8G" (= GiB) or a number of bytes.

    Raises SettingsError unless the result is at least one byte and fits in 63 bits.
    """
    match = _BYTES.fullmatch(str(text)) if isinstance(text, str | int) and not isinstance(text, bool) else None
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise SettingsError(f"expected an amount of memory such as 2GiB, 500MB or 1048576, got {text!r}")
    # Whole numbers stay integers: a float would round bytes above 2^53.
    amount = int(match[1]) * factor if match[1].isdigit() else int(float(match[1]) * factor)
    if not 1 <= amount < 2**63:
        raise SettingsError(f"expected an amount of memory from 1 byte to 8 EiB, got {text!r}")
    return amount


def format_bytes(amount: int) -> str:
    """An amount of memory for people, in binary units with three or more significant digits: 1536 -> "1.50 KiB"."""
    value, unit = float(amount), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{amount} B"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"


def parse_size(text: str) -> tuple[int, int]:
    """Picture size (width, height) in pixels from "1280x720"; SettingsError unless both are 1 to MAX_SIDE."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SettingsError(f"expected a picture size such as 1280x720, got {text!r}")
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise SettingsError(f"expected a width and a height from 1 to {MAX_SIDE} pixels, got {text!r}")
    return width, height

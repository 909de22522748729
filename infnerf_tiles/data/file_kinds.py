"""What a file is that stands where a photo should, and what to do about it."""

from pathlib import Path

_CONVERT = "convert it to JPEG or PNG, and let the pose file name that"
_DEVELOP = "develop it to JPEG or TIFF in full size, and let the pose file name that"
# the first bytes, where they begin
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (8, b"CR\x02", f"a RAW photo (CR2); {_DEVELOP}"),
    (0, b"IIRO", f"a RAW photo (ORF); {_DEVELOP}"),
    (0, b"IIU\0", f"a RAW photo (RW2); {_DEVELOP}"),
    (0, b"FUJIFILMCCD-RAW", f"a RAW photo (RAF); {_DEVELOP}"),
    (4, b"ftypcrx", f"a RAW photo (CR3); {_DEVELOP}"),
    (4, b"ftypavi", f"an AVIF picture; {_CONVERT}"),
    *((4, b"ftyp" + brand, f"a HEIC picture; {_CONVERT}") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", "a video; take frames from it"),
    (0, b"\x76\x2f\x31\x01", f"an OpenEXR picture; {_CONVERT}"),
    (0, b"#?RADIANCE", f"a Radiance HDR picture; {_CONVERT}"),
    (0, b"\0\0\0\x0cjP  ", f"a JPEG 2000 picture; {_CONVERT}"),
    (0, b"\xff\x4f\xff\x51", f"a JPEG 2000 picture; {_CONVERT}"),
    (0, b"\0\0\0\x0cJXL ", f"a JPEG XL picture; {_CONVERT}"),
    (0, b"\xff\x0a", f"a JPEG XL picture; {_CONVERT}"),
    (0, b"GIF8", f"a GIF picture; {_CONVERT}"),
    (0, b"8BPS", f"a Photoshop file; {_CONVERT}"),
    (0, b"%PDF", f"a PDF file; {_CONVERT}"),
    (0, b"version https://git-lfs", "a pointer of git-lfs in place of the photo; fetch it with 'git lfs pull'"),
)
_PAGES = (b"<!doctype html", b"<html")
# these are TIFF files, in which only a preview can be read
_RAW_SUFFIXES = frozenset({".3fr", ".arw", ".dng", ".iiq", ".nef", ".nrw", ".pef", ".srw"})
_TIFF_STARTS = (b"II*\0", b"MM\0*")
HEAD_BYTES = 64


def foreign_kind(path: Path, head: bytes) -> str | None:
    """What a file is by its first bytes (as many as there are of 64) and what to do; None for what may be a photo."""
    for place, start, kind in _STARTS:
        if head[place:].startswith(start):
            return kind
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page; the download failed, fetch the photo again"
    if path.suffix.lower() in _RAW_SUFFIXES and head.startswith(_TIFF_STARTS):
        return f"a RAW photo ({path.suffix[1:].upper()}); {_DEVELOP}"
    return None

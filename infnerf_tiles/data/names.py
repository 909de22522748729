"""Photo names: relative, with forward slashes, inside their folder."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

MISSING_PHOTO = "the file does not exist"


def name_problem(name: str) -> str | None:
    """Why a photo, mask or point file name cannot be used, or None. Names must stay inside their folder."""
    if not name or name == ".":
        return "the name is empty"
    if any(ord(c) < 32 for c in name):
        return "the name has control characters; rename the photo"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8; rename the photo and fix it in the pose file"
    portable = name.replace("\\", "/")
    if portable.startswith("/") or re.match(r"[A-Za-z]:", portable):
        return "the name is an absolute path; make it relative to the photo folder"
    if ".." in PurePosixPath(portable).parts:
        return "the name leaves its folder (..); make it relative to the photo folder"
    return None


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a checked name below `folder`, or None.

    Tries the name as it is, then with Windows separators and in the other Unicode forms that copying between systems
    produces.
    """
    portable = name.replace("\\", "/")
    forms = [name, portable, unicodedata.normalize("NFC", portable), unicodedata.normalize("NFD", portable)]
    for form in dict.fromkeys(forms):
        path = folder / form
        if path.is_file():
            return path
    return None


def parent_folders(names: Iterable[str]) -> tuple[str, ...]:
    """The folders that all names begin with, from the outside in; the first one may be "/", a drive or ".."."""
    common: tuple[str, ...] | None = None
    for name in names:
        folders = PurePosixPath(name).parts[:-1]
        if common is None:
            common = folders
        else:
            same = next((i for i, (a, b) in enumerate(zip(common, folders, strict=False)) if a != b), None)
            common = common[: min(len(common), len(folders)) if same is None else same]
    return common or ()


def shared_folder(names: Iterable[str]) -> str:
    """The first folder of all names, with its slash, if it is the same one; else ""."""
    folders = {name.partition("/")[0] + "/" if "/" in name else "" for name in names}
    return folders.pop() if len(folders) == 1 else ""

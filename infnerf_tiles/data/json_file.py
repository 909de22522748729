"""Reading JSON that came from somewhere else."""

import json
from pathlib import Path

from infnerf_tiles.errors import DatasetError


def read_json(path: Path) -> object:
    """A parsed JSON file. DatasetError with line and column if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable file, got: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: expected JSON, got: {error}; fix or export the file again") from error

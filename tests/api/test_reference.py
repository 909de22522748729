"""The reference page holds everything that is exported, and importing the package stays light."""

import dataclasses
import inspect
import pydoc
import subprocess
import sys

import pytest

import infnerf_tiles
from infnerf_tiles import api
from infnerf_tiles.api.reference import _field_docstrings, page


def test_the_page_documents_every_name_method_and_setting() -> None:
    text = page()
    for name in api.__all__:
        assert f"\n## {name}\n" in text
        found = getattr(api, name)
        if dataclasses.is_dataclass(found) and found.__module__.endswith("api.config"):
            assert isinstance(found, type)
            documented = _field_docstrings(found)
            for field in dataclasses.fields(found):
                assert field.name in documented, f"{name}.{field.name}"
                assert f"- `{field.name}: " in text
    for method in ("InfNeRF.forward", "InfNeRF.save", "InfNeRFTrainer.train_step", "InfNeRFRenderer.render_video"):
        assert f"\n### {method}\n" in text
    assert len(text.splitlines()) < 1500


def test_pydoc_reads_it() -> None:
    text = pydoc.render_doc(api, renderer=pydoc.plaintext)
    assert "class InfNeRFTrainer" in text
    assert "world units" in text


def test_the_package_exports_what_the_api_does() -> None:
    assert set(infnerf_tiles._API) == set(api.__all__)
    for name in api.__all__:
        assert getattr(infnerf_tiles, name) is getattr(api, name)
        assert name in dir(infnerf_tiles)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = infnerf_tiles.Nonsense  # type: ignore[attr-defined]
    # the lines for type checkers name the same
    source = inspect.getsource(infnerf_tiles)
    assert all(f"    from infnerf_tiles.api import {name} as {name}\n" in source for name in api.__all__)


def test_importing_the_package_loads_neither_torch_nor_numba() -> None:
    code = "import infnerf_tiles, sys; sys.exit(any(m in sys.modules for m in ('torch', 'numba', 'zarr')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

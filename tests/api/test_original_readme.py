"""The code of the original InfNeRF package's README runs: the same names, calls and settings.

The blocks are kept as they were written. Only the import line and integers for size, frames and epochs are changed
before they run; file names are relative to a temporary folder.
"""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import infnerf_tiles
from infnerf_tiles.data.dataset import PosedPhotos

BLOCKS = {path.name.split(".")[0]: path.read_text(encoding="utf-8") for path in
          sorted((Path(__file__).parent / "original_readme").glob("*.py.txt"))}  # fmt: skip
OUTLINES = [name for name in BLOCKS if "outline" in name]
IMPORT = "from src.nerfs.inf_nerf import"
SMALLER = {"image_width": 32, "image_height": 24, "num_frames": 2, "num_epochs": 1, "num_views": 2}


def _changed(code: str) -> str:
    """The block with the new import line and smaller sizes; every other character stays."""
    code = code.replace(IMPORT, "from infnerf_tiles import")
    for name, value in SMALLER.items():
        code = re.sub(rf"\b{name}=\d+", f"{name}={value}", code)
    return code


def test_the_blocks_are_all_there() -> None:
    assert len(BLOCKS) == 9
    assert len(OUTLINES) == 4
    assert sum(code.count(IMPORT) for code in BLOCKS.values()) == 2


def test_the_executable_blocks_run_end_to_end(
    unit_city: PosedPhotos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # the free names of the blocks; their imports bring the others
    names: dict[str, Any] = {
        "torch": torch,
        "train_dataset": unit_city,
        "camera_pose": torch.tensor(unit_city.cameras.camera_to_world[0].copy()),
        "intrinsics": torch.tensor([[40.0, 0.0, 16.0], [0.0, 40.0, 12.0], [0.0, 0.0, 1.0]]),
    }
    names |= {name: getattr(infnerf_tiles, name) for name in ("VolumeRendererConfig",)}
    for name, code in BLOCKS.items():
        if name not in OUTLINES:
            exec(compile(_changed(code), name, "exec"), names)
    assert names["config"].max_depth == 8
    assert names["trainer"].step == names["trainer"].total_steps > 0
    assert names["result"]["rgb"].shape == (24, 32, 3)
    assert bool(torch.isfinite(names["result"]["rgb"]).all())
    assert (tmp_path / "output.mp4").stat().st_size > 0
    assert (tmp_path / "checkpoints" / "best.pth").is_file()
    assert len(list((tmp_path / "demo_renders").glob("*.png"))) == 2
    assert names["volume_config"].lambda_distortion == 0.01
    assert names["renderer_config"].max_rays_per_batch == 8192
    assert names["trainer_config"].distributed


@pytest.mark.parametrize("name", OUTLINES)
def test_the_outlined_classes_have_these_methods(name: str) -> None:
    # the outlines have comments for bodies and dots for parameters, which is no Python
    code = re.sub(r"(?m)^( *)(def .*:)$", r"\1\2 pass", BLOCKS[name]).replace(", ...)", ", **more)")
    (outline,) = (node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    found = getattr(infnerf_tiles, outline.name)
    assert inspect.getdoc(found)
    if any(ast.unparse(base) == "nn.Module" for base in outline.bases):
        assert issubclass(found, torch.nn.Module)
    methods = [node for node in outline.body if isinstance(node, ast.FunctionDef)]
    assert methods
    for method in methods:
        expected = [argument.arg for argument in method.args.args]
        parameters = list(inspect.signature(getattr(found, method.name)).parameters.values())
        assert [p.name for p in parameters[: len(expected)]] == expected, method.name
        # what the outline does not name must not be needed
        more = parameters[len(expected) :]
        if method.args.kwarg is None:
            assert all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in more)
        assert inspect.getdoc(getattr(found, method.name)), method.name


def test_the_settings_that_the_text_lists_exist() -> None:
    listed = {
        "InfNeRFConfig": "max_depth hidden_dim num_samples scene_bound",
        "InfNeRFTrainerConfig": "num_epochs lr_init rays_batch_size mixed_precision distributed local_rank",
        "InfNeRFRendererConfig": "image_width image_height render_chunk_size max_rays_per_batch save_depth save_alpha",
        "VolumeRendererConfig": "lambda_rgb lambda_depth lambda_distortion",
    }
    for kind, names in listed.items():
        assert set(names.split()) <= set(inspect.signature(getattr(infnerf_tiles, kind)).parameters)

"""Imports point one way, are free of cycles, and heavy libraries stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "infnerf_tiles"
# folders of the repository that are installed as subpackages
MAPPED = {"pipelines": f"{PACKAGE}.pipelines", "configs": f"{PACKAGE}.configs"}

# A unit is a module or subpackage right below the package; "" is the package's own __init__. A unit may import units of
# lower layers, and of its own layer only where SIBLINGS says so.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"compiled", "errors", "process"}),
    frozenset({"arrays", "units", "configs", "outputs"}),
    frozenset({"geometry", "kernels"}),
    frozenset({"settings"}),
    frozenset({"field", "volume", "data", "store", "metrics", "synthetic"}),
    frozenset({"training", "rendering"}),
    frozenset({"pipelines", "api", "viewer", "export"}),
    frozenset({""}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
SIBLINGS = frozenset({("synthetic", "data")})
# stricter than the layer
ONLY = {"settings": frozenset({"errors", "units", "geometry"})}
# outside libraries that only some units may import
CONFINED = {"dask": frozenset({"pipelines"}), "distributed": frozenset({"pipelines"})}
# numpy on the disk side, torch on the device side
NO_TORCH = frozenset({"errors", "arrays", "units", "outputs", "geometry", "settings", "data", "store", "metrics"})

RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}


def violations(root: Path) -> list[str]:
    """Everything that breaks the rules in the source tree whose repository folder is `root`, as readable lines."""
    modules = dict(_modules(root))
    found: list[str] = []
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        unit = _unit(name)
        if unit not in RANK:
            found.append(f"{name}: {unit!r} has no layer; name one in LAYERS")
            continue
        for target in _imports(name, path, modules):
            if target.split(".")[0] != PACKAGE:
                found += _outside(name, unit, target.split(".")[0])
                continue
            other = _unit(target)
            if not _may_import(unit, other):
                found.append(f"{name}: imports {target}, which is not below it")
            if target in graph and target != name:
                graph[name].add(target)
    return found + [f"import cycle: {' -> '.join(cycle)}" for cycle in _cycles(graph)]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, prefix in {PACKAGE: PACKAGE, **MAPPED}.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = [prefix, *path.relative_to(root / folder).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _unit(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def _may_import(unit: str, other: str) -> bool:
    if unit == other:
        return True
    if unit in ONLY:
        return other in ONLY[unit]
    return other in RANK and (RANK[other] < RANK[unit] or (unit, other) in SIBLINGS)


def _outside(name: str, unit: str, library: str) -> list[str]:
    if unit not in CONFINED.get(library, {unit}):
        return [f"{name}: imports {library}, which only {', '.join(sorted(CONFINED[library]))} may"]
    if library == "torch" and unit in NO_TORCH:
        return [f"{name}: imports torch, but {unit} is on the numpy side"]
    return []


def _imports(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Names of the modules that a file imports, at the top or inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                member = f"{base}.{alias.name}"
                # "from package import x" may mean a submodule
                yield member if member in modules else base


def _cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """One cycle through each module that closes one in a depth-first walk."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for target in sorted(graph[name]):
                yield from walk(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        yield from walk(name, [])


def test_this_source_tree_keeps_the_rules() -> None:
    assert len(dict(_modules(REPOSITORY))) > 15
    assert violations(REPOSITORY) == []


def _plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("infnerf_tiles/geometry/a.py", "from infnerf_tiles.data import photos", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/geometry/a.py", "import infnerf_tiles.data.photos", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/geometry/a.py", "from ..data.photos import decode", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/geometry/a.py", "from .. import data", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/geometry/a.py", "def f():\n    from infnerf_tiles import settings", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/geometry/a.py", "from infnerf_tiles import Scene", "infnerf_tiles.geometry.a"),
        ("infnerf_tiles/rendering/a.py", "from infnerf_tiles.training import t", "infnerf_tiles.rendering.a"),
        ("infnerf_tiles/training/t.py", "from infnerf_tiles.rendering import r", "infnerf_tiles.training.t"),
        ("infnerf_tiles/data/a.py", "from infnerf_tiles.synthetic import x", "infnerf_tiles.data.a"),
        ("infnerf_tiles/settings.py", "from infnerf_tiles.arrays import Float64", "infnerf_tiles.settings"),
        ("infnerf_tiles/api.py", "from infnerf_tiles.cli import main", "infnerf_tiles.api"),
        ("pipelines/build.py", "from infnerf_tiles.viewer.app import App", "infnerf_tiles.pipelines.build"),
        ("infnerf_tiles/store/a.py", "import dask.array as da", "only pipelines may"),
        ("infnerf_tiles/cli.py", "from distributed import Client", "only pipelines may"),
        ("infnerf_tiles/store/a.py", "import torch.nn", "numpy side"),
        ("infnerf_tiles/helpers.py", "", "has no layer"),
    ],
)
def test_a_planted_breach_is_reported(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    tree = {"infnerf_tiles/__init__.py": "", "infnerf_tiles/data/__init__.py": "", "infnerf_tiles/settings.py": ""}
    found = violations(_plant(tmp_path, {**tree, file: text}))
    assert len(found) == 1
    assert complaint in found[0]


def test_cycles_within_a_unit_are_reported(tmp_path: Path) -> None:
    found = violations(
        _plant(
            tmp_path,
            {
                "infnerf_tiles/data/a.py": "from infnerf_tiles.data.b import x",
                "infnerf_tiles/data/b.py": "from infnerf_tiles.data import c",
                "infnerf_tiles/data/c.py": "from . import a",
            },
        )
    )
    assert found == [
        "import cycle: infnerf_tiles.data.a -> infnerf_tiles.data.b -> infnerf_tiles.data.c -> infnerf_tiles.data.a"
    ]


def test_imports_downwards_are_fine(tmp_path: Path) -> None:
    found = violations(
        _plant(
            tmp_path,
            {
                "infnerf_tiles/errors.py": "import math",
                "infnerf_tiles/geometry/camera.py": "from infnerf_tiles.errors import E",
                "infnerf_tiles/data/photos.py": "from ..geometry.camera import Camera\nimport numpy",
                "infnerf_tiles/synthetic/city.py": "from infnerf_tiles.data.photos import p",
                "infnerf_tiles/training/t.py": "import torch\nfrom infnerf_tiles.data import photos",
                "pipelines/train.py": "import dask\nfrom infnerf_tiles.training.t import train",
                "infnerf_tiles/cli.py": "from infnerf_tiles import __version__\nimport infnerf_tiles.pipelines.train",
            },
        )
    )
    assert found == []

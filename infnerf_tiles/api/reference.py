"""The API reference as one page of Markdown, made from the docstrings: `python -m infnerf_tiles.api.reference`."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import infnerf_tiles.api as api


def page() -> str:
    """Everything that `infnerf_tiles.api` exports: signature, docstring, settings and methods, sorted by name."""
    parts = ["# infnerf_tiles: Python API\n", inspect.getdoc(api) or ""]
    parts += ["## Contents\n", "\n".join(f"- [{name}](#{name.lower()})" for name in sorted(api.__all__))]
    for name in sorted(api.__all__):
        parts += _entry(name, getattr(api, name))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _entry(name: str, found: Any) -> Iterator[str]:
    yield f"## {name}"
    if not inspect.isclass(found):
        yield _code(f"{name}{_signature(found)}")
        yield _documented(found, name)
        return
    yield _code(f"class {name}{_signature(found)}")
    yield _documented(found, name)
    if dataclasses.is_dataclass(found):
        yield _settings(found)
    elif (constructor := vars(found).get("__init__")) is not None and constructor.__doc__:
        yield inspect.cleandoc(constructor.__doc__)
    for method, member in _methods(found):
        yield f"### {name}.{method}"
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(member, property):
            yield _documented(member, f"{name}.{method}")
            continue
        yield _code(f"{method}{_signature(function)}")
        yield _documented(function, f"{name}.{method}")


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the package itself defines, also in base classes, in order of definition."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("infnerf_tiles"):
            continue
        for name, member in vars(base).items():
            callable_one = inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property)
            if callable_one and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, member


def _settings(kind: type) -> str:
    """The fields of a dataclass with type, default and the docstring under each."""
    meanings = _field_docstrings(kind)
    lines = []
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        kind_name = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        meaning = meanings.get(field.name, "")
        lines.append(f"- `{field.name}: {kind_name}{default}`" + (f": {meaning}" if meaning else ""))
    return "\n".join(lines)


def _field_docstrings(kind: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[field.target.id] = " ".join(value.value.split())
    return found


def _documented(found: Any, name: str) -> str:
    text = inspect.getdoc(found)
    if not text:
        raise ValueError(f"{name}: expected a docstring, got none")
    return text


def _signature(found: Any) -> str:
    try:
        return str(inspect.signature(found)).replace("infnerf_tiles.", "")
    except ValueError:
        return "(…)"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


if __name__ == "__main__":
    sys.stdout.write(page())

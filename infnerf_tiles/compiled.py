"""numba's `njit`, whose cache on disk knows all compiled code of the package.

numba itself only looks whether the file of a function has changed. It would go on with what it compiled from functions
and constants of other files: after an update in place pictures would be wrong, and nothing would say so.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SIGNS = (b"njit", b"llvmlite")


@functools.cache
def sources() -> str:
    """Digest of all source files that have to do with code for numba, by the words in them."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        text = path.read_bytes()
        if any(sign in text for sign in _SIGNS):
            digest.update(path.name.encode() + hashlib.sha256(text).digest())
    return digest.hexdigest()


@overload
def njit(function: _Function) -> _Function: ...
@overload
def njit(
    *, cache: bool = False, parallel: bool = False, nogil: bool = False, inline: str = "never"
) -> Callable[[_Function], _Function]: ...
def njit(function: Any = None, **options: Any) -> Any:
    """As `numba.njit`; what it compiled is compiled anew once any of `sources` has changed."""
    if function is None:
        return functools.partial(njit, **options)
    compiled = numba.njit(**options)(function)
    # where a later numba keeps no such stamp, its own remains
    index = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None:
        index._source_stamp = (index._source_stamp, sources())
    return compiled

"""Group documents (`zarr.json`) with a checksum over their attributes.

Zarr checks chunks but not its own metadata, so a flipped bit in a number would go unnoticed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from infnerf_tiles.errors import DamagedStoreError
from infnerf_tiles.store.chunk_codec import ChunkError
from infnerf_tiles.store.guarded import GuardedStore

DOCUMENT = "zarr.json"
_CHECKSUM = "checksum"
_Result = TypeVar("_Result")


def document_key(path: str) -> str:
    """Key of the document of the group or array at `path` ("" is the root)."""
    return f"{path}/{DOCUMENT}" if path else DOCUMENT


def checksum(attributes: Mapping[str, Any]) -> str:
    """SHA-256 of the attributes, their own checksum left out, as canonical JSON."""
    return fingerprint({key: value for key, value in attributes.items() if key != _CHECKSUM})


def fingerprint(value: Any) -> str:
    """SHA-256, hexadecimal, of a JSON-able value; the order of dictionary keys does not matter.

    Tuples count as lists. ValueError for NaN and infinity, TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The bytes of a Zarr v3 group document with these attributes and their checksum."""
    signed = json.loads(json.dumps(dict(attributes), allow_nan=False))  # tuples become lists before they are signed
    signed[_CHECKSUM] = checksum(signed)
    document = {"zarr_format": 3, "node_type": "group", "attributes": signed}
    return json.dumps(document, indent=1, allow_nan=False).encode()


def plain_group_document() -> bytes:
    """The bytes of a group document that says nothing; it lets other Zarr readers walk the store."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()


def read_document(store: GuardedStore, path: str) -> dict[str, Any] | None:
    """The JSON document of the group or array at `path`; None if there is none. DamagedStoreError if it is no JSON
    object."""
    key = document_key(path)
    try:
        data = store.read_bytes(key)
        if data is None:
            return None
        document = json.loads(data)
    except (ChunkError, ValueError, RecursionError) as error:
        raise DamagedStoreError(f"scene {store.name}: {key} is damaged ({error}); run 'verify --repair'") from error
    if not isinstance(document, dict):
        raise DamagedStoreError(f"scene {store.name}: {key} holds no JSON object; run 'verify --repair'")
    return document


def check_group(document: Mapping[str, Any], store: GuardedStore, path: str) -> dict[str, Any]:
    """The attributes of a document made by `group_document`; DamagedStoreError unless their checksum agrees."""
    attributes = document.get("attributes")
    intact = (
        document.keys() == {"zarr_format", "node_type", "attributes"}
        and document["zarr_format"] == 3
        and document["node_type"] == "group"
        and isinstance(attributes, dict)
        and attributes.get(_CHECKSUM) == checksum(attributes)
    )
    if not intact or not isinstance(attributes, dict):
        raise DamagedStoreError(
            f"scene {store.name}: {document_key(path)} does not match its checksum (damaged, or edited by hand); "
            "run 'verify --repair'"
        )
    return attributes


def read_group(store: GuardedStore, path: str) -> dict[str, Any] | None:
    """The checked attributes of the group at `path`; None if it does not exist."""

    def read() -> dict[str, Any] | None:
        document = read_document(store, path)
        return None if document is None else check_group(document, store, path)

    return asked_again(store, read)


def asked_again(store: GuardedStore, read: Callable[[], _Result]) -> _Result:
    """The result of `read`; what arrives damaged from a server is asked for once more: the way here can damage bytes
    too. ChunkError or DamagedStoreError if that is no better."""
    try:
        return read()
    except (ChunkError, DamagedStoreError):
        if not store.is_remote:
            raise
    return read()

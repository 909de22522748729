"""The door of the viewer: a small TCP relay that lets in who may come in, and keeps the page server to this machine.

Every connection begins with the head of an HTTP request. Pages of other sites may not open one (their Origin is not
this server), and where the server is open to other machines the visitor has to bring the token: once in the address,
from then on in a cookie.
"""

import asyncio
import contextlib
import hmac
import logging
import threading
from collections.abc import Coroutine
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from infnerf_tiles.errors import SettingsError

_MAX_HEAD = 1 << 16
_HEAD_SECONDS = 10.0
_REASONS = {
    400: "bad request",
    401: "this page needs the token that the viewer printed: open the whole address",
    403: "not from here",
}
_log = logging.getLogger(__name__)


def judge(head: bytes, token: str | None, cookie: str) -> tuple[int, str]:
    """(status, place) for the head of a request: 101 to let it through, 303 to send it to `place` with the cookie set,
    or the status of a refusal.

    token: what a visitor must show, None if nothing. cookie: name under which he keeps it.
    """
    lines = head.decode("latin-1").split("\r\n")
    request = lines[0].split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if len(request) != 3 or "host" not in headers:
        return 400, ""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower():
        return 403, ""
    if token is None:
        return 101, ""
    try:
        kept = SimpleCookie(headers.get("cookie", "")).get(cookie)
    except CookieError:
        kept = None
    if kept is not None and hmac.compare_digest(kept.value.encode(), token.encode()):
        return 101, ""
    shown = parse_qs(urlsplit(request[1]).query).get("token", [""])[0]
    if hmac.compare_digest(shown.encode(), token.encode()):
        return 303, urlsplit(request[1]).path or "/"
    return 401, ""


class Gate:
    """Relays (host, port) to a server on this machine; runs in a thread of its own until `close`."""

    def __init__(self, host: str, port: int, inner_port: int, token: str | None) -> None:
        """port 0: any that is free. SettingsError if the place cannot be had."""
        self._inner = inner_port
        self._token = token
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        try:
            self._server: asyncio.Server = self._do(asyncio.start_server(self._accept, host, port, limit=_MAX_HEAD))
        except (OSError, OverflowError) as error:
            self._stop()
            raise SettingsError(
                f"viewer: expected to listen at {host}:{port}, got: {error}; give another --port or --host"
            ) from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._cookie = f"infnerf-tiles-{self.port}"

    def close(self) -> None:
        """Send everybody home and give the port back."""
        self._do(self._close())
        self._stop()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            _log.debug("viewer: a connection ended: %s", error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        status, place = judge(head, self._token, self._cookie)
        if status != 101:
            writer.write(self._answer(status, place))
            await writer.drain()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner)
        try:
            inner_writer.write(head)
            await asyncio.gather(_relay(reader, inner_writer), _relay(inner_reader, writer))
        finally:
            inner_writer.close()

    def _answer(self, status: int, place: str) -> bytes:
        if status == 303:
            cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            headers, body = f"Location: {place}\r\nSet-Cookie: {cookie}\r\n", ""
        else:
            reason = {
                401: "this page needs the token that the viewer printed: open the whole address",
                403: "not from here",
            }
            headers, body = "", reason.get(status, "bad request")
        name = {303: "See Other", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden"}[status]
        return (
            f"HTTP/1.1 {status} {name}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\n"
            f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        ).encode()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()

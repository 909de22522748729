"""Small web servers for tests: plain, with byte ranges, unreliable, and shaped like an object store."""

import contextlib
import http.server
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class Server:
    """A running server. url: of the served folder. requests: paths asked for so far, answered well or not."""

    def __init__(
        self, folder: Path, *, ranges: bool = False, fail: float = 0.0, stall: float = 0.0, seconds: float = 1.0,
        corrupt: float = 0.0, seed: int = 0, prefix: str = "",
    ) -> None:  # fmt: skip
        """fail, stall, corrupt: shares of the requests that end badly: with status 503 or a torn body, after `seconds`
        of silence, with a flipped bit; they may be changed in `shares`. prefix: path in front of the folder."""
        self.requests: list[str] = []
        self.bad = 0
        self._closed = False
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._folder, self._ranges, self._prefix = folder, ranges, prefix
        self.shares = (fail, stall, corrupt)
        self._seconds = seconds
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    outer._answer(self)

            do_HEAD = do_GET

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}{prefix}"

    def close(self) -> None:
        self._closed = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests.append(request.path)
            fail, stall, corrupt = (self._rng.random() < share for share in self.shares)
            torn = self._rng.random() < 0.5
            self.bad += fail or stall or corrupt
        if stall:
            time.sleep(self._seconds)
            request.close_connection = True
            return
        if self._closed:  # connections that were kept open
            request.close_connection = True
            return
        path = self._folder / request.path.removeprefix(self._prefix).lstrip("/")
        if not path.is_file() or (fail and not torn):
            self._send(request, 503 if path.is_file() else 404, b"", {})
            return
        body, status = path.read_bytes(), 200
        headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        wanted = request.headers.get("Range")
        if self._ranges and wanted is not None:
            first, last = wanted.removeprefix("bytes=").split("-")
            start = len(body) - int(last) if not first else int(first)
            stop = len(body) if not first or not last else int(last) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
            body, status = body[start:stop], 206
        if corrupt and body:
            flipped = bytearray(body)
            flipped[len(body) // 2] ^= 1
            body = bytes(flipped)
        self._send(request, status, body, headers, torn=fail)

    def _send(
        self, request: http.server.BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], *,
        torn: bool = False,
    ) -> None:  # fmt: skip
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[: len(body) // 2] if torn else body)
        request.close_connection = torn


@contextlib.contextmanager
def serving(folder: Path, **options: object) -> Iterator[Server]:
    """A server of that folder while the block runs; options as of `Server`."""
    server = Server(folder, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()

"""Who may come in."""

import http.client
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.viewer.gate import Gate, judge

TOKEN = "s3cret"


def head(path: str = "/", **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: here:80", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    ("request_head", "token", "expected"),
    [
        (head(), None, (101, "")),
        (head(Origin="http://here:80"), None, (101, "")),
        (head(Origin="https://here:80"), None, (101, "")),
        (head(Origin="http://elsewhere"), None, (403, "")),
        (head(Origin="null"), None, (403, "")),
        (head(), TOKEN, (401, "")),
        (head("/?token=wrong"), TOKEN, (401, "")),
        (head("/a?token=s3cret"), TOKEN, (303, "/a")),
        (head(Cookie="x=1; c=s3cret"), TOKEN, (101, "")),
        (head(Cookie="c=other"), TOKEN, (401, "")),
        (head(Cookie="c=s3cret", Origin="http://elsewhere"), TOKEN, (403, "")),
        (b"GET / HTTP/1.1\r\n\r\n", None, (400, "")),
        (b"\x16\x03\x01 nonsense\r\n\r\n", None, (400, "")),
    ],
)
def test_requests_are_judged_by_origin_and_token(
    request_head: bytes, token: str | None, expected: tuple[int, str]
) -> None:
    assert judge(request_head, token, "c") == expected


class Echo(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.path.encode() * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def inner() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_what_is_let_in_reaches_the_server_and_comes_back(inner: int) -> None:
    gate = Gate("127.0.0.1", 0, inner, None)
    assert get(gate.port, "/x")[:2] == (200, b"/x" * 100_000)
    assert get(gate.port, "/x", Origin="http://evil.example")[0] == 403
    gate.close()
    with pytest.raises(ConnectionError):
        get(gate.port, "/x")


def test_the_token_becomes_a_cookie(inner: int) -> None:
    gate = Gate("127.0.0.1", 0, inner, TOKEN)
    assert get(gate.port, "/")[0] == 401
    status, _, headers = get(gate.port, f"/page?token={TOKEN}")
    assert (status, headers["Location"]) == (303, "/page")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    assert get(gate.port, "/page", Cookie=headers["Set-Cookie"].split(";")[0])[0] == 200
    gate.close()


def test_a_taken_port_is_told(inner: int) -> None:
    with pytest.raises(SettingsError, match="give another --port"):
        Gate("127.0.0.1", inner, inner, None)
    with pytest.raises(SettingsError, match="expected to listen at"):
        Gate("no.such.host.invalid", 0, inner, None)


def test_silence_and_floods_end(inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infnerf_tiles.viewer.gate._HEAD_SECONDS", 0.1)
    gate = Gate("127.0.0.1", 0, inner, None)
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as silent:
        assert silent.recv(1) == b""
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as flood:
        try:
            flood.sendall(b"x" * (1 << 20))
            assert flood.recv(1) == b""
        except ConnectionError:
            pass
    gate.close()

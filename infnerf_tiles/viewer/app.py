"""The viewer: a page server on this machine, a gate in front of it, and a visitor per browser."""

import contextlib
import io
import ipaddress
import logging
import secrets
import threading
from types import TracebackType
from typing import Self

import viser

from infnerf_tiles.rendering.renderer import DeviceChoice
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.viewer.gate import Gate
from infnerf_tiles.viewer.placement import placement_of
from infnerf_tiles.viewer.shared import SharedRenderer
from infnerf_tiles.viewer.visitor import Visitor

_log = logging.getLogger(__name__)


class Viewer:
    """Serves pictures of one scene until `close`; also a context manager."""

    def __init__(
        self,
        scene: Scene,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        memory_budget: int | None = None,
        threads: int | None = None,
        max_width: int = 1920,
        device: DeviceChoice | None = None,
    ) -> None:
        """host: address to listen at; any but this machine's own loopback asks visitors for a token. port: 0 for any
        that is free. max_width: widest picture in pixels. Other arguments as of `Renderer`.

        SettingsError if the address cannot be had, BudgetError as of `Renderer`.
        """
        self._shared = SharedRenderer(scene, memory_budget, threads, device)
        self._max_width = max_width
        self._placement, start = placement_of(scene)
        self._visitors: dict[int, Visitor] = {}
        self._lock = threading.Lock()
        self.token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        label = f"infnerf-tiles: {scene.store.name}"
        with contextlib.redirect_stdout(io.StringIO()):  # it prints an address that is not the one to open
            self._server = viser.ViserServer(host="127.0.0.1", port=0, label=label, verbose=False)
        # a visitor's browser could ask for a tunnel through a server of the library's makers, past the gate
        setattr(self._server, "request_share_url", _refuse_to_share)  # noqa: B010
        try:
            self._gate = Gate(host, port, self._server.get_port(), self.token)
        except BaseException:
            self._server.stop()
            self._shared.close()
            raise
        self._host = host
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.scene.set_up_direction(tuple(start.up.tolist()))
        _, position = self._placement.page_pose(start.pose)
        first = self._server.initial_camera
        first.position = position
        first.look_at = self._placement.to_page(start.target)
        first.up = start.up
        first.fov = start.fov
        self._server.on_client_connect(self._enter)
        self._server.on_client_disconnect(self._leave)

    @property
    def url(self) -> str:
        """The address to open, with the token if one is asked for."""
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{name}:{self._gate.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def num_visitors(self) -> int:
        """Browsers that are looking now."""
        return len(self._visitors)

    @property
    def shared(self) -> SharedRenderer:
        """The renderer that all visitors draw with."""
        return self._shared

    def close(self) -> None:
        """Say goodbye to everybody and end."""
        with self._lock:
            visitors = list(self._visitors.values())
        for visitor in visitors:
            visitor.stop()
        self._gate.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, client: viser.ClientHandle) -> None:
        _log.info("viewer: visitor %d came", client.client_id)
        visitor = Visitor(client, self._shared, self._placement, self._max_width)
        with self._lock:
            self._visitors[client.client_id] = visitor
        visitor.start()

    def _leave(self, client: viser.ClientHandle) -> None:
        _log.info("viewer: visitor %d left", client.client_id)
        with self._lock:
            visitor = self._visitors.pop(client.client_id, None)
        if visitor is not None:
            visitor.stop()


def _refuse_to_share(verbose: bool = True) -> None:
    _log.warning("viewer: a visitor asked for a public address; refused")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

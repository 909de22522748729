"""`view`."""

import threading
from typing import TYPE_CHECKING

import click

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.options import bytes_of, device_option, scene_argument
from infnerf_tiles.cli.terminal import Terminal
from infnerf_tiles.errors import SettingsError

if TYPE_CHECKING:
    from infnerf_tiles.rendering.renderer import DeviceChoice


@scene_argument
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to listen at (default: 127.0.0.1, this machine only). Any other asks visitors for the token in the "
    "address that is printed; the traffic is not encrypted.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    metavar="N",
    help="Port to listen at (default: 8080; 0: any).",
)
@click.option(
    "--memory-budget",
    metavar="BYTES",
    callback=bytes_of,
    help="Memory for the nodes that are drawn from, for all visitors together, such as 500MB or 2GiB.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Processor threads; default: all cores.")
@click.option(
    "--max-width",
    type=click.IntRange(160, 7680),
    default=1920,
    metavar="PIXELS",
    help="Widest picture; default: 1920.",
)
@device_option
def view(
    terminal: Terminal,
    scene: str,
    host: str,
    port: int,
    memory_budget: int | None,
    threads: int | None,
    max_width: int,
    device: "DeviceChoice | None",
) -> None:
    """Look around in SCENE with a browser; pictures are drawn here and sent there.

    A coarse picture comes at once and gets finer while the camera rests. SCENE may be a folder, a .zip, or an address.
    Ctrl-C ends it. Needs the extra: pip install 'infnerf-tiles[viewer]'.

    \b
    Examples:
      infnerf-tiles view city.zarr
      infnerf-tiles view https://example.org/city.zarr --memory-budget 500MB
      infnerf-tiles view city.zarr --host 0.0.0.0 --port 9000
    """
    from infnerf_tiles.rendering.scene import Scene

    try:
        from infnerf_tiles.viewer.app import Viewer
    except ImportError as error:
        raise SettingsError(
            f"view: expected the library viser, got: {error}; pip install 'infnerf-tiles[viewer]'"
        ) from error
    with (
        Scene.open(scene) as opened,
        Viewer(
            opened,
            host=host,
            port=port,
            memory_budget=memory_budget,
            threads=threads,
            max_width=max_width,
            device=device,
        ) as viewer,
    ):
        if viewer.token is not None:
            terminal.say("open to other machines: who has the address below can look, and the traffic is not encrypted")
        terminal.result({"scene": scene, "url": viewer.url}, viewer.url)
        terminal.say("open this address in a browser; Ctrl-C ends")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            terminal.say("ending")


view_command = command("view", "Look around in a scene with a browser.")(view)

"""`info`, `verify`, `gc` and `pack`."""

from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import RenderableType

from infnerf_tiles.cli.app import command
from infnerf_tiles.cli.options import scene_argument
from infnerf_tiles.cli.terminal import Terminal, decibel, facts_table, size_text, table
from infnerf_tiles.errors import DamagedStoreError, SettingsError
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.process import peak_memory
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.scene_store import SceneStore

if TYPE_CHECKING:
    from infnerf_tiles.store.facts import SceneFacts
    from infnerf_tiles.store.verify import VerifyReport

_DAMAGED = 5
_OTHER_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_MAX_DAMAGE_ROWS = 50


@scene_argument
@click.option("--treelets", is_flag=True, help="List every treelet with its state, nodes and PSNR.")
def info(terminal: Terminal, scene: str, treelets: bool) -> None:
    """Tell what is inside SCENE: levels, nodes, the trained share, bytes, the georeference.

    \b
    Examples:
      infnerf-tiles info city.zarr
      infnerf-tiles info city.zarr --treelets
      infnerf-tiles info city.zarr --json
    """
    from infnerf_tiles.store.facts import info as read_facts

    with SceneStore.open(scene) as store:
        store.check_built()
        facts = read_facts(store)
        index = store.read_index()
        rows = _treelet_rows(store, index) if treelets else []
        working_set = _smallest_working_set(store, index)
        header = store.header
    document: dict[str, Any] = {
        **facts.to_json(),
        "bands": band_rows(index, header.band_levels),
        "max_level": header.max_level,
        "root": {"origin": list(header.root.origin), "edge": header.root.edge},
        "smallest_working_set_bytes": working_set,
        "settings": {key: value for key, value in header.settings.items() if key != "inputs"},
        "peak_bytes": peak_memory(),
    }
    views = [_facts_table(facts, working_set), _level_table(facts)]
    if treelets:
        document["regions"] = rows
        columns = ("treelet", "band", "state", "nodes", "PSNR (training)", "seconds")
        cells = [
            (r["treelet"], r["band"], r["state"], r["nodes"], decibel(r["psnr"]), _seconds(r["seconds"])) for r in rows
        ]
        views.append(table("treelets", columns, cells))
    terminal.result(document, *views)


def _facts_table(facts: "SceneFacts", working_set: int) -> RenderableType:
    georeference = facts.georeference or {}
    return facts_table(
        f"scene {facts.scene}",
        {
            "made from": facts.dataset or "–",
            "created": f"{facts.created}, by version {facts.package_version}",
            "format version, generation": f"{facts.format_version}, {facts.generation}",
            "nodes": facts.nodes,
            "of them trained": facts.trained_nodes,
            "treelets": facts.treelets,
            "of them trained, failed": f"{facts.trained_treelets:,}, {facts.failed_treelets:,}",
            "size": f"{size_text(facts.bytes)} in {'–' if facts.files is None else format(facts.files, ',')} files",
            "row of a node, base of a treelet": f"{size_text(facts.row_bytes)}, {size_text(facts.base_bytes)}",
            "smallest memory to draw from": size_text(working_set) if working_set else "– (nothing is trained)",
            "georeference": f"{georeference['crs']}, origin {georeference['origin']}" if georeference else "none",
        },
    )


def _level_table(facts: "SceneFacts") -> RenderableType:
    rows = [(level.level, f"{level.gsd:.4g}", level.nodes, level.trained_nodes) for level in facts.levels]
    return table("levels", ("level", "GSD", "nodes", "trained"), rows)


def _smallest_working_set(store: SceneStore, index: SceneIndex) -> int:
    """Bytes without which some sample cannot be drawn; 0 while nothing can."""
    from infnerf_tiles.field.shape import FieldShape
    from infnerf_tiles.rendering.accounts import smallest_working_set

    header = store.header
    shape = FieldShape(cells=header.cells, table_size=header.table_size, features=header.features)
    return smallest_working_set(index, shape)


def band_rows(index: SceneIndex, band_levels: tuple[int, ...]) -> list[dict[str, int]]:
    """Treelets per band, coarse to fine: {"level", "treelets", "trained_treelets"}."""
    trained = index.treelet_states == TreeletState.TRAINED
    return [
        {
            "level": level,
            "treelets": int((index.bands == band).sum()),
            "trained_treelets": int(((index.bands == band) & trained).sum()),
        }
        for band, level in enumerate(band_levels)
    ]


def _treelet_rows(store: SceneStore, index: SceneIndex) -> list[dict[str, Any]]:
    """One row per treelet, coarse to fine."""
    from infnerf_tiles.store.journal import read_record

    nodes = np.bincount(index.treelets, minlength=index.num_treelets)
    trained = np.bincount(index.treelets[index.states == NodeState.TRAINED], minlength=index.num_treelets)
    rows = []
    for row in np.lexsort((index.root_keys, index.bands)).tolist():
        name = str(NodeId.from_key(int(index.root_keys[row])))
        try:
            record = read_record(store, name)
        except DamagedStoreError:  # for `verify` to tell
            record = None
        rows.append(
            {
                "treelet": name,
                "band": int(index.bands[row]),
                "state": TreeletState(int(index.treelet_states[row])).name.lower(),
                "nodes": int(nodes[row]),
                "trained_nodes": int(trained[row]),
                "psnr": None if record is None else record.psnr,
                "seconds": None if record is None else record.seconds,
            }
        )
    return rows


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


@scene_argument
@click.option(
    "--repair", is_flag=True, help="Drop what is broken, so that train makes it again; restore the index and metadata."
)
def verify(terminal: Terminal, scene: str, repair: bool) -> int:
    """Read every shard of SCENE and compare it with its checksum and the journal.

    Exit code 5 if something is damaged and was not repaired. Beside a running training it reads what has changed again;
    with --repair it wants the scene for itself. Damaged regions are never drawn: coarser levels stand in
    for them until they are trained again.

    \b
    Examples:
      infnerf-tiles verify city.zarr
      infnerf-tiles verify city.zarr --repair && infnerf-tiles train city.zarr
    """
    from infnerf_tiles.store.repair import repair as mend
    from infnerf_tiles.store.verify import verify as check

    with ExitStack() as stack:
        store = stack.enter_context(_open_to_verify(terminal, scene, repair))
        store.check_built()
        if repair:  # nobody may change what is read before it is mended
            stack.enter_context(store.exclusive())
        bars = stack.enter_context(terminal.progress())
        bar = bars.add_task("reading", total=None)
        report = check(store, lambda done, total: bars.update(bar, completed=done, total=total))
        document = report.to_json()
        mended = None
        if repair and not report.ok:
            try:
                mended = mend(store, report)
            except DamagedStoreError:
                terminal.result(document, *_damage_tables(report))
                raise
    if mended is not None:
        document["repaired"] = {
            "generation": mended.generation,
            "planned_treelets": list(mended.planned_treelets),
            "dropped_records": list(mended.dropped_records),
            "restored": list(mended.restored),
        }
    terminal.result({**document, "peak_bytes": peak_memory()}, *_damage_tables(report))
    if report.ok:
        terminal.say("nothing is damaged")
        return 0
    if mended is not None:
        again = f": infnerf-tiles train {quote(scene)}" if mended.planned_treelets else ""
        terminal.say(f"repaired; {len(mended.planned_treelets)} treelets are to be trained again{again}")
        return 0
    if report.moved:
        terminal.error(
            f"scene {scene}: {len(report.damage)} things seem damaged, but another process kept changing the scene "
            "while it was read; verify it again when that has finished"
        )
        return _DAMAGED
    mending = f"infnerf-tiles verify {quote(scene)} --repair"
    terminal.error(f"scene {scene}: {len(report.damage)} things are damaged; {mending}")
    return _DAMAGED


def _open_to_verify(terminal: Terminal, scene: str, repair: bool) -> SceneStore:
    if not repair:
        return SceneStore.open(scene)
    from infnerf_tiles.store.repair import recover_root

    try:
        return SceneStore.open(scene, "r+")
    except DamagedStoreError as error:
        terminal.say(f"{error}; restoring it from the index")
        return recover_root(scene)


def _damage_tables(report: "VerifyReport") -> list[RenderableType]:
    checked = facts_table(
        f"scene {report.scene}",
        {
            "generation": report.generation,
            "nodes read": report.nodes_checked,
            "bases read": report.bases_checked,
            "damaged": len(report.damage),
        },
    )
    if report.ok:
        return [checked]
    rows = [(d.kind, d.name, d.treelet or "–", d.reason) for d in report.damage[:_MAX_DAMAGE_ROWS]]
    rest = len(report.damage) - len(rows)
    title = f"damage (and {rest} more, see --json)" if rest else "damage"
    return [checked, table(title, ("what", "name", "treelet", "reason"), rows)]


@scene_argument
def gc(terminal: Terminal, scene: str) -> None:
    """Free what nothing in SCENE names any more: rows of retrained nodes, old generations, leftovers of interruptions.

    \b
    Examples:
      infnerf-tiles gc city.zarr
    """
    from infnerf_tiles.store.garbage import collect_garbage

    with SceneStore.open(scene, "r+") as store:
        freed = collect_garbage(store)
    facts = {"rows freed": freed.num_slots, "freed": size_text(freed.num_bytes)}
    document = {"scene": scene, "slots": freed.num_slots, "bytes": freed.num_bytes, "peak_bytes": peak_memory()}
    terminal.result(document, facts_table(f"scene {scene}", facts))


@scene_argument
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--nodes-per-shard",
    type=click.IntRange(min=2),
    metavar="N",
    help="Nodes that share a file where OUT is a folder; default: 32.",
)
def pack(terminal: Terminal, scene: str, output: Path, nodes_per_shard: int | None) -> None:
    """Write a copy of SCENE to OUT, to ship: what drawing needs and nothing else, in one .zip or in a few large files.

    A folder OUT may stand behind any web server or object store that answers range requests; for a server that does
    not, use the scene itself, whose nodes are files of their own. Packed copies can be read but not changed.

    \b
    Examples:
      infnerf-tiles pack city.zarr city.zip
      infnerf-tiles pack city.zarr public/city.zarr --nodes-per-shard 64
      infnerf-tiles render https://example.org/city.zarr -o city.png
    """
    from infnerf_tiles.store.pack import ROWS_PER_SHARD, pack_shards
    from infnerf_tiles.store.pack import pack as pack_zip

    zipped = output.suffix.lower() == ".zip"
    if output.suffix.lower() in _OTHER_ARCHIVES:
        raise click.UsageError(f"OUT: expected a name in .zip, or a folder, got {output}; name a .zip")
    if zipped and nodes_per_shard is not None:
        raise click.UsageError("--nodes-per-shard: expected OUT to be a folder, got a .zip, which has no shards")
    with SceneStore.open(scene) as store, terminal.progress() as bars:
        bar = bars.add_task("rows", total=None)

        def tell(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        try:
            if zipped:
                num_bytes, files = pack_zip(store, output, tell), 1
            else:
                num_bytes = pack_shards(store, output, rows_per_shard=nodes_per_shard or ROWS_PER_SHARD, progress=tell)
                files = sum(1 for path in output.rglob("*") if path.is_file())
        except SettingsError:  # also a ValueError, of the place
            raise
        except ValueError as error:
            raise click.UsageError(f"--nodes-per-shard: {error}") from error
    facts = {"written": output, "size": size_text(num_bytes), "files": files}
    document = {"scene": scene, "output": str(output), "bytes": num_bytes, "files": files, "peak_bytes": peak_memory()}
    terminal.result(document, facts_table(f"scene {scene}", facts))


info_command = command("info", "Tell what is inside a scene.")(info)
verify_command = command("verify", "Check a scene against its checksums; repair it.")(verify)
gc_command = command("gc", "Free what nothing in a scene names any more.")(gc)
pack_command = command("pack", "Write a read-only copy of a scene, to ship.")(pack)

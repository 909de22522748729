"""What a training leaves: folded rows, pruned leaves, and how the index takes them up."""

import numpy as np
import pytest
import torch
from training.small_scenes import SHAPE, ball_keys, ball_trainer, frame

from infnerf_tiles.arrays import Int64
from infnerf_tiles.errors import NonFiniteError
from infnerf_tiles.field.linking import link
from infnerf_tiles.geometry.node_id import NodeId, ancestor_keys, child_keys, key_levels, parent_keys
from infnerf_tiles.geometry.octree import Octree, cut
from infnerf_tiles.kernels import for_device
from infnerf_tiles.kernels.arena import Arena
from infnerf_tiles.store.index import NodeState, SceneIndex, TreeletState
from infnerf_tiles.store.journal import JournalRecord
from infnerf_tiles.training import checkpoint, seed
from infnerf_tiles.training.merge import with_record, with_records, with_warm_rows
from infnerf_tiles.training.result import TrainedTreelet, finish, prune
from infnerf_tiles.training.seed import seed_nodes
from infnerf_tiles.training.state import ResidentNodes, TrainingState
from infnerf_tiles.training.trainer import Trainer

NOTHING = np.empty(0, np.int64)
BANDS = (0, 2)


def random_trainer(rng: np.random.Generator, depth: int = 2) -> Trainer:
    """A trainer whose nodes hold random features and have all been seen."""
    t = ball_trainer(ball_keys(depth), frame_=frame(depth, can_go_below=True))
    own = t.state.num_own
    t.state.tables[:own] = torch.from_numpy(rng.normal(0, 0.3, tuple(t.state.tables[:own].shape)).astype(np.float32))
    t.state.dense[:] = torch.from_numpy(rng.normal(0, 0.3, tuple(t.state.dense.shape)).astype(np.float32))
    t.evidence.seen[:own] = 9.0
    return t


def resident(trained: TrainedTreelet) -> ResidentNodes:
    rows = np.zeros((SHAPE.base_rows, SHAPE.features), np.float16)
    flat = trained.base.reshape(-1, SHAPE.features)
    rows[: len(flat)] = flat
    return ResidentNodes(
        keys=trained.keys, treelet=np.zeros(len(trained.keys), np.int32), tables=trained.tables,
        occupancy=trained.occupancy, lambda_max=trained.lambda_max, top_keys=np.zeros(1, np.int64),
        bases=rows.reshape(1, -1),
    )  # fmt: skip


def features(arena: Arena, position: torch.Tensor, slot: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    out = torch.empty((len(position), SHAPE.features))
    for_device(arena.device).encode_into(position, slot, beta, arena, out)
    return out


def test_what_is_kept_reproduces_the_trained_field(rng: np.random.Generator) -> None:
    t = random_trainer(rng)
    slot = torch.from_numpy(rng.integers(0, t.state.num_own, 3000).astype(np.int32))
    position = t.state.local_position(slot, torch.from_numpy(rng.random((3000, 3), np.float32)))
    beta = torch.from_numpy(rng.random(3000, np.float32))
    before = features(t.state.arena, position, slot, beta)
    trained = finish(t, 1e-9, NOTHING)
    assert np.array_equal(trained.keys, np.sort(t.state.keys[: t.state.num_own]))
    assert trained.tables.dtype == trained.base.dtype == np.float16
    stored = TrainingState(SHAPE, NodeId(0, 0, 0, 0), NOTHING, 0, resident(trained))
    rows = torch.from_numpy(np.searchsorted(trained.keys, t.state.keys[slot.numpy()]).astype(np.int32))
    after = features(stored.arena, position, rows, beta)
    # five grids of values around 1 in float16, 2^-11 each
    assert torch.allclose(before, after, atol=4e-3)
    assert (before - after).abs().mean() < 6e-4
    assert np.array_equal(trained.lambda_max, np.minimum(9.0, key_levels(trained.keys)))


def test_the_octrees_root_is_linked_as_it_is_stored(rng: np.random.Generator) -> None:
    trained = finish(random_trainer(rng), 1e-9, NOTHING)
    links = link(trained.keys, np.zeros(len(trained.keys), np.int32), np.zeros(1, np.int64))
    assert (links.parent[1:] >= 0).all()


@pytest.mark.parametrize("why", ["empty", "small", "unseen"])
def test_only_useless_leaves_go(why: str, rng: np.random.Generator) -> None:
    t = random_trainer(rng)
    level, own = t.state.level, t.state.num_own
    leaves = np.flatnonzero(level[:own] == 2)
    useless = [int(leaves[0]), int(leaves[5]), 1]  # slot 1 has a child that stays
    kept_by_need = int(leaves[6])
    for s in [*useless, kept_by_need]:
        if why == "empty":
            t.state.ema[s] = 0.0
        elif why == "small":
            t.state.tables[s] = 0.0
        else:
            t.evidence.seen[s] = float(level[s]) - 1.0
    trained = finish(t, 1e-9, np.array([t.state.keys[kept_by_need]]))
    gone = set(t.state.keys[:own].tolist()) - set(trained.keys.tolist())
    has_child = set(parent_keys(trained.keys[1:]).tolist())
    expected = {int(t.state.keys[s]) for s in useless} - has_child
    assert gone == expected
    assert int(t.state.keys[useless[0]]) in gone
    assert int(t.state.keys[kept_by_need]) in trained.keys
    if why == "unseen":
        at = int(np.searchsorted(trained.keys, t.state.keys[kept_by_need]))
        assert trained.lambda_max[at] == 2.0  # what hangs below counts on all of it


def test_pruning_never_leaves_an_orphan(rng: np.random.Generator) -> None:
    keys = Octree.from_keys(rng.choice(child_keys(child_keys(child_keys(NOTHING[:0].tolist() or np.zeros(1, np.int64))
                            .ravel()).ravel()).ravel(), 60)).keys  # fmt: skip
    useless = rng.random(len(keys)) < 0.7
    useless[0] = False
    needed = rng.choice(keys, 4)
    keep = prune(keys, useless, needed)
    kept = keys[keep]
    assert np.isin(parent_keys(kept[1:]), kept).all()
    assert np.isin(needed, kept).all()
    assert keep[~useless].all()
    has_kept_child = np.isin(keys, parent_keys(kept[1:]))
    assert (useless & ~has_kept_child & ~np.isin(keys, needed) & keep).sum() == 0


def test_a_shuffled_state_is_stored_in_order(rng: np.random.Generator) -> None:
    t = random_trainer(rng, 1)
    t.state.add_children(np.array([8, 2]), np.array([0, 7]), 2)
    own = t.state.num_own
    t.state.tables[own - 2 : own] = 1.0
    t.state.ema[:own] = 1.0
    t.evidence.seen[:own] = 9.0
    trained = finish(t, 1e-9, NOTHING)
    assert (np.diff(trained.keys) > 0).all()
    for s in range(own):
        at = int(np.searchsorted(trained.keys, t.state.keys[s]))
        assert np.array_equal(trained.tables[at], t.state.tables[s].numpy().ravel().astype(np.float16))


def test_what_is_not_finite_is_not_kept(rng: np.random.Generator) -> None:
    t = random_trainer(rng, 1)
    t.state.dense[3] = float("inf")
    with pytest.raises(NonFiniteError, match="base"):
        finish(t, 1e-9, NOTHING)


@pytest.mark.parametrize("part", ["decoder", "appearance", "background"])
def test_what_all_treelets_share_is_not_kept_with_nan(part: str) -> None:
    t = ball_trainer(ball_keys(1), frame_=frame(1, can_go_below=True))
    t.shared.check_finite(t.step)
    parameter = next(getattr(t.shared, part).parameters())
    with torch.no_grad():
        parameter.view(-1)[-1] = torch.nan
    with pytest.raises(NonFiniteError, match=part):
        finish(t, 0.01, NOTHING)
    with pytest.raises(NonFiniteError, match=part):
        checkpoint.save(t)
    t.shared.trainable = False  # then another training has to answer for it
    t.shared.check_finite(t.step)


def test_evidence_below_the_deepest_level_asks_for_children(rng: np.random.Generator) -> None:
    t = random_trainer(rng, 1)
    t.evidence.count[3, 5], t.evidence.photos[3, 5] = 99, 0b1011
    t.evidence.count[4, 5], t.evidence.photos[4, 5] = 99, 0b11
    t.evidence.count[0, 5], t.evidence.photos[0, 5] = 99, 0b1011
    t.work.frame = frame(1, can_go_below=True)
    assert finish(t, 1e-9, NOTHING).want_children.tolist() == [child_keys(t.state.keys[3:4])[0, 5]]
    t.work.frame = frame(1, can_go_below=False)
    assert finish(t, 1e-9, NOTHING).want_children.tolist() == []


# --- the index ----------------------------------------------------------------------------------------------------


def check(index: SceneIndex) -> None:
    index.check(next_slot=1000, next_treelet_slot=1000, num_bands=len(BANDS), max_level=4)


def record(treelet: str, keys: Int64, **more: object) -> JournalRecord:
    n = len(keys)
    values = {
        "status": TreeletState.TRAINED, "seconds": 1.0, "peak_bytes": 1, "steps": 1, "settings_fingerprint": "",
        "inputs_fingerprint": "", "keys": keys, "slots": np.arange(500, 500 + n, dtype=np.int32),
        "lambda_max": np.ones(n, np.float32), "base_slot": 77, **more,
    }  # fmt: skip
    return JournalRecord(treelet=treelet, **values)  # type: ignore[arg-type]


def planned(rng: np.random.Generator) -> SceneIndex:
    level3 = child_keys(child_keys(child_keys(np.zeros(1, np.int64)).ravel()).ravel()).ravel()
    octree = Octree.from_keys(rng.choice(level3, 20, replace=False))
    keys = octree.keys[::3]
    return with_warm_rows(octree, BANDS, keys, np.arange(len(keys), dtype=np.int32), {0: 3})


def test_warm_rows_stay_planned(rng: np.random.Generator) -> None:
    index = planned(rng)
    check(index)
    assert (index.states == NodeState.PLANNED).all()
    assert (index.slots >= 0).sum() == len(index.keys[::3])
    assert index.base_slots[index.root_keys == 0].tolist() == [3]
    assert (index.base_slots >= 0).sum() == 1


def test_a_record_prunes_grows_and_stays_valid(rng: np.random.Generator) -> None:
    index = planned(rng)
    mine = index.keys[index.treelets == np.flatnonzero(index.root_keys == 0)[0]]
    held = parent_keys(index.root_keys[index.root_keys > 0])
    leaf = mine[(key_levels(mine) == 1) & ~np.isin(mine, held)]
    grown = child_keys(np.zeros(1, np.int64))[0]
    fresh = grown[~np.isin(grown, mine)][:1]  # a level-1 node that training added
    trained = np.sort(np.concatenate([np.setdiff1d(mine, leaf), fresh]))
    parents = trained[key_levels(trained) == 1]
    wanted = np.unique(child_keys(parents)[:, [0, 7]])
    lost = child_keys(leaf[:1])[0, :1] if len(leaf) else NOTHING  # below a node that is pruned
    after = with_record(index, record("L0/0-0-0", trained, want_children=np.sort(np.r_[wanted, lost])), BANDS)
    check(after)
    row = int(np.flatnonzero(after.root_keys == 0)[0])
    assert after.treelet_states[row] == TreeletState.TRAINED
    assert after.base_slots[row] == 77
    assert np.array_equal(after.keys[after.states == NodeState.TRAINED], trained)
    assert not np.isin(leaf, after.keys).any()
    assert not np.isin(lost, after.keys).any()
    new = np.setdiff1d(after.root_keys, index.root_keys)
    assert np.array_equal(np.sort(new), np.setdiff1d(wanted, index.keys))
    for key in new.tolist():
        at = int(np.flatnonzero(after.root_keys == key)[0])
        assert after.bands[at] == 1
        assert after.keys[after.treelets == at].tolist() == [key]
    # everything else is as it was, warm rows too
    others = np.isin(index.keys, after.keys) & ~np.isin(index.keys, mine)
    at = np.searchsorted(after.keys, index.keys[others])
    assert np.array_equal(after.slots[at], index.slots[others])
    # and the same record once more changes nothing
    again = with_record(after, record("L0/0-0-0", trained, want_children=wanted), BANDS)
    assert again.same_as(after)


@pytest.mark.parametrize("seed", range(4))
def test_records_at_once_are_as_one_after_the_other(seed: int) -> None:
    """Rows of new treelets in the same order, whatever was pruned, grown or failed."""
    rng, bands = np.random.default_rng(seed), (0, 1, 2)
    level3 = child_keys(child_keys(child_keys(np.zeros(1, np.int64)).ravel()).ravel()).ravel()
    index = SceneIndex.planned(cut(Octree.from_keys(rng.choice(level3, 30, replace=False)), bands))
    records = []
    for n, row in enumerate(rng.permutation(np.flatnonzero(index.bands <= 1)).tolist()):
        root = index.root_keys[row : row + 1]
        new = rng.choice(child_keys(root)[0], 5, replace=False)
        status = TreeletState.FAILED if n % 4 == 3 else TreeletState.TRAINED
        keys = root if status == TreeletState.TRAINED else NOTHING
        rows = {"slots": np.full(len(keys), 100 + n, np.int32), "lambda_max": np.full(len(keys), n, np.float32)}
        name = str(NodeId.from_key(int(root[0])))
        records.append(record(name, keys, status=status, want_children=np.sort(new), base_slot=n, **rows))
    expected = index
    for one in records:
        expected = with_record(expected, one, bands)
    assert expected.num_treelets > index.num_treelets
    found = with_records(index, records, bands)
    assert found.same_as(expected)
    found.check(next_slot=1000, next_treelet_slot=1000, num_bands=3, max_level=3)
    assert with_records(index, [], bands).same_as(index)


def test_a_failed_record_changes_the_state_alone(rng: np.random.Generator) -> None:
    index = planned(rng)
    name = str(NodeId.from_key(int(index.root_keys[2])))
    after = with_record(index, record(name, NOTHING, status=TreeletState.FAILED, base_slot=-1, message="NaN"), BANDS)
    check(after)
    assert after.treelet_states.tolist() == [TreeletState.FAILED if r == 2 else 0 for r in range(index.num_treelets)]
    assert np.array_equal(after.keys, index.keys)
    assert np.array_equal(after.slots, index.slots)


# --- nodes of the seed stage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 9, 40, 100, 10_000])
def test_seed_nodes_fit_the_budget_and_have_their_parents(rng: np.random.Generator, budget: int) -> None:
    level3 = child_keys(child_keys(child_keys(np.zeros(1, np.int64)).ravel()).ravel()).ravel()
    keys = Octree.from_keys(rng.choice(level3, 150, replace=False)).keys
    chosen = seed_nodes(keys, BANDS, budget, 5)
    assert np.array_equal(chosen, seed_nodes(keys, BANDS, budget, 5))
    assert len(chosen) <= budget
    assert np.isin(chosen, keys).all()
    assert (np.diff(chosen) > 0).all()
    assert np.isin(parent_keys(chosen[1:]), chosen).all()
    if budget >= len(keys):
        assert np.array_equal(chosen, keys)
    elif budget >= 40:
        # whole regions: below a region's root nothing is left out
        tops = chosen[key_levels(chosen) == 2]
        deep = keys[(key_levels(keys) == 3)]
        whole = [np.isin(deep[parent_keys(deep) == top], chosen).all() for top in tops]
        assert sum(whole) >= 1
        assert key_levels(chosen).max() == 3
        assert not np.array_equal(chosen, seed_nodes(keys, BANDS, budget, 6))


def _one_region_after_the_other(keys: Int64, bands: tuple[int, ...], budget: int, seed: int) -> Int64:
    """The slow twin of `seed_nodes`: looks at all nodes for every region, and at every region."""
    levels, top = key_levels(keys), bands[-1]
    chosen = np.zeros(1, np.int64)
    for level in range(1, int(levels.max()) + 1):
        if (levels <= level).sum() > 0.25 * budget:
            break
        chosen = keys[levels <= level]
    deep = keys[levels >= top]
    roots = ancestor_keys(deep, np.full(len(deep), top))
    for root in np.random.default_rng((seed, 2)).permutation(np.unique(roots)).tolist():
        chain = [int(ancestor_keys(np.array([root]), np.array([k]))[0]) for k in range(top)]
        grown = np.unique(np.concatenate([chosen, deep[roots == root], np.array(chain, np.int64)]))
        chosen = grown if len(grown) <= budget else chosen
    return chosen


@pytest.mark.parametrize("bands", [(0,), (0, 1), (0, 2), (0, 3), (0, 1, 2)])
def test_seed_nodes_are_those_of_the_slow_twin(rng: np.random.Generator, bands: tuple[int, ...]) -> None:
    level3 = child_keys(child_keys(child_keys(np.zeros(1, np.int64)).ravel()).ravel()).ravel()
    keys = Octree.from_keys(rng.choice(level3, 150, replace=False)).keys
    for draw, budget in enumerate([1, 2, 9, 17, 33, 40, 80, 120, len(keys) - 1]):
        expected = _one_region_after_the_other(keys, bands, budget, draw)
        assert np.array_equal(seed_nodes(keys, bands, budget, draw), expected)


def test_seed_nodes_look_at_each_region_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many regions there are, the work on keys is in a few passes."""
    level3 = child_keys(child_keys(child_keys(np.zeros(1, np.int64)).ravel()).ravel()).ravel()
    keys, calls = Octree.from_keys(level3).keys, []
    monkeypatch.setattr(seed, "ancestor_keys", lambda *args: calls.append(1) or ancestor_keys(*args))  # type: ignore[func-returns-value]
    assert 380 < len(seed_nodes(keys, (0, 2), 400, 0)) <= 400
    assert len(calls) == 3  # region roots, and their ancestors of two levels

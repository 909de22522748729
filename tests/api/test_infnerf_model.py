"""`InfNeRF` as a torch module: gradients, state, devices, octree."""

import numpy as np
import pytest
import torch
from api.api_models import TINY, some_rays, tiny_model
from torch import Tensor

from infnerf_tiles.api import InfNeRF, InfNeRFConfig
from infnerf_tiles.api.adaptation import Adaptation
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.field.shading import shade
from infnerf_tiles.geometry.node_id import decode_keys


def _loss(model: InfNeRF, rays: tuple[Tensor, Tensor], photo: Tensor) -> Tensor:
    out = model(*rays, 0.05, 10.0, 40.0, 1.0, photo=photo)
    weights = torch.linspace(0.5, 1.5, 3, dtype=out["rgb"].dtype)
    total: Tensor = (out["rgb"] * weights).sum() + 0.3 * out["depth"].sum() + 0.2 * out["alpha"].square().sum()
    return total


@pytest.mark.parametrize(
    "group", ["grid.tables", "grid.dense", "decoder", "background.coefficients", "appearance.affine"]
)
def test_gradients_agree_with_finite_differences_in_float64(group: str) -> None:
    model = tiny_model(seed=3, num_photos=2).double()
    rays, photo = some_rays(6), torch.tensor([0, 1, 0, 1, 1, 0])
    parameters = [p for name, p in model.named_parameters() if name.startswith(group)]
    assert parameters
    _loss(model, rays, photo).backward()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        # entries that rays touch, and one direction through all entries
        flat = gradient.flatten()
        chosen = torch.nonzero(flat).squeeze(1)
        assert chosen.numel() > 0
        chosen = chosen[torch.randperm(chosen.numel(), generator=generator)[:3]]
        directions = [torch.nn.functional.one_hot(k, flat.numel()).double() for k in chosen]
        directions.append(torch.randn(flat.numel(), generator=generator, dtype=torch.float64))
        for direction in directions:
            step = 1e-6 * direction.view_as(parameter)
            values = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    parameter += sign * step
                model.octree_changed()
                values.append(float(_loss(model, rays, photo).detach()))
                with torch.no_grad():
                    parameter -= sign * step
            expected = float(flat @ direction)
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_float32_gradients_of_the_fast_kernels_are_those_of_float64() -> None:
    fast, exact = tiny_model(seed=4), tiny_model(seed=4).double()
    rays, photo = some_rays(32), torch.zeros(32, dtype=torch.int64)
    for model in (fast, exact):
        model.appearance.affine.data = torch.eye(3, 4)[None].to(model.dtype)
        _loss(model, rays, photo).backward()  # type: ignore[no-untyped-call]
    for (name, a), (_, b) in zip(fast.named_parameters(), exact.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        scale = float(b.grad.abs().max())
        assert float((a.grad.double() - b.grad).abs().max()) < 2e-3 * scale, name


def test_a_batch_gives_what_its_rays_give_alone() -> None:
    model = tiny_model(seed=1).eval()
    origins, directions = some_rays(5)
    with torch.no_grad():
        together = model(origins, directions, focal_length=30.0)
        for k in range(5):
            alone = model(origins[k : k + 1], directions[k : k + 1], focal_length=30.0)
            for name in ("rgb", "depth", "alpha"):
                torch.testing.assert_close(alone[name][0], together[name][k], rtol=1e-5, atol=1e-6)


def test_nothing_counts_outside_near_and_far() -> None:
    model = tiny_model(seed=1)
    origins, directions = some_rays(16)
    far = torch.linspace(1.0, 3.0, 16)
    out = model(origins, directions, 2.0, far, 30.0)
    samples = out["samples"]
    assert samples.count > 0
    assert float(samples.t.min()) >= 2.0
    assert bool((samples.t <= far[samples.ray.long()]).all())
    nothing = model(origins, directions, 50.0, 60.0, 30.0)
    assert float(nothing["alpha"].detach().abs().max()) == 0.0


def test_wide_pixels_use_coarser_nodes() -> None:
    model = tiny_model(seed=2).eval()
    origins, directions = some_rays(64)
    levels = []
    for width in (1.0, 4.0, 16.0):
        samples = model(origins, directions, None, None, 60.0, width)["samples"]
        levels.append(float(model.arena().level[samples.slot.long()].float().mean()))
    assert levels[0] > levels[1] > levels[2]


def test_any_torch_optimizer_learns() -> None:
    origins, directions = some_rays(64, seed=9)
    target = torch.tensor([0.9, 0.2, 0.1]).expand(64, 3)
    makers: list[tuple[type[torch.optim.Optimizer], float]] = [
        (torch.optim.SGD, 1.0), (torch.optim.AdamW, 0.01), (torch.optim.RMSprop, 0.01)
    ]  # fmt: skip
    for make, rate in makers:
        model = tiny_model(seed=5)
        optimizer = make(model.parameters(), lr=rate)  # type: ignore[call-arg]
        errors = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = (model(origins, directions, focal_length=30.0)["rgb"] - target).square().mean()
            loss.backward()
            optimizer.step()
            errors.append(float(loss.detach()))
        assert errors[-1] < 0.9 * errors[0], make


def test_checkpointing_changes_no_gradient() -> None:
    rays, photo = some_rays(16), torch.zeros(16, dtype=torch.int64)
    found = []
    for checkpointing in (False, True):
        model = tiny_model(seed=6, num_photos=1)
        model.gradient_checkpointing = checkpointing
        _loss(model, rays, photo).backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)


def test_state_dict_brings_the_octree_along() -> None:
    model = tiny_model(seed=7, num_photos=3)
    model.lambda_max.uniform_(0.0, 3.0)
    model.occupancy.random_(0, 256)
    fresh = InfNeRF(model.config)
    assert fresh.num_nodes == 1
    fresh.load_state_dict(model.state_dict())
    assert list(fresh.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    origins, directions = some_rays(32)
    with torch.no_grad():
        a, b = (m.eval()(origins, directions, focal_length=30.0) for m in (model, fresh))
    assert torch.equal(a["rgb"], b["rgb"])


def test_every_part_is_registered_and_moves_together() -> None:
    model = tiny_model(num_photos=2)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"grid", "decoder", "background", "appearance"}
    meta = tiny_model().to("meta")
    assert all(value.device.type == "meta" for value in meta.state_dict().values())
    back = model.double().float()
    assert back.arena().tables.dtype == torch.float32
    assert back.arena().tables.data_ptr() == back.grid.tables.data_ptr()  # type: ignore[union-attr]


def test_drawing_and_forward_shade_alike() -> None:
    model = tiny_model(seed=8).eval()
    origins, directions = some_rays(16)
    rays, basis = model.make_rays(origins, directions, 30.0)
    samples, known = model.sample(rays, model.lattice(), None, None)
    with torch.no_grad():
        sigma, colour = model.shade(samples, basis, known)
    fixed_sigma, fixed_colour = model.shade_fixed(samples, basis)
    torch.testing.assert_close(sigma, fixed_sigma, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(colour, fixed_colour, rtol=1e-4, atol=1e-5)
    plain = shade(model.arena(), model.decoder, samples, basis)  # type: ignore[arg-type]
    assert torch.equal(plain[0], fixed_sigma)


def test_random_points_lie_in_their_nodes() -> None:
    model = tiny_model(seed=9)
    seen: list[Tensor] = []
    model.grid.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[:2]))
    sigma, gsd = model.random_densities(500, torch.Generator().manual_seed(0))
    position, slot = seen[0], seen[1].long()
    arena = model.arena()
    scale = torch.exp2(arena.level[slot].float())[:, None]
    cell = torch.from_numpy(decode_keys(model.keys.numpy())[1])[slot]
    assert torch.equal((position * scale).floor().long(), cell)
    torch.testing.assert_close(gsd, model.config.gsd_root / scale[:, 0])
    assert sigma.shape == (500,)


def test_growing_and_pruning_keep_features_and_order() -> None:
    model = tiny_model(seed=10)
    features = {int(k): model.grid.tables[s].detach().clone() for s, k in enumerate(model.keys)}  # type: ignore[index]
    adaptation = Adaptation(model)
    adaptation.evidence.count[:, 2] = 99
    adaptation.evidence.photos[:, 2] = 0b111
    adaptation.evidence.seen[:] = torch.arange(model.num_nodes)
    seen = dict(zip(model.keys.tolist(), adaptation.evidence.seen.tolist(), strict=True))
    source = adaptation.grow()
    assert source is not None
    assert model.num_nodes > len(features)
    assert bool((model.keys.diff() > 0).all())
    for slot, key in enumerate(model.keys.tolist()):
        row = model.grid.tables[slot]  # type: ignore[index]
        assert torch.equal(row, features.get(key, torch.zeros_like(row)))
        assert adaptation.evidence.seen[slot] == seen.get(key, -1.0)
    assert model.deepest_level <= model.config.max_depth
    # empty the new nodes: they are leaves, and go
    new = torch.from_numpy(np.flatnonzero(source < 0))
    model.occupancy[new] = 0
    adaptation = Adaptation(model)
    adaptation.prune()
    assert set(model.keys.tolist()) == set(features)
    assert adaptation.prune() is None


def test_settings_that_make_no_field_are_told_by_name() -> None:
    for name, value in (("max_depth", 19), ("scene_bound", 0.0), ("cells", 24), ("log2_table_size", 2)):
        with pytest.raises(SettingsError, match=name):
            InfNeRFConfig(**{**TINY, name: value})
    with pytest.raises(SettingsError, match="float32"):
        tiny_model().half()(*some_rays(2))

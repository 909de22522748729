"""`VolumeRenderer`: compositing of samples given ray by ray, and the loss terms of a batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infnerf_tiles.api.config import VolumeRendererConfig
from infnerf_tiles.api.grid import kernels_for
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.volume.losses import colour_loss, distortion_loss, transparency_loss

_LAST_STEP = 1e10
"""Length of the interval behind a ray's last sample."""


class VolumeRenderer:
    """Compositing and losses, with the weights of a `VolumeRendererConfig`."""

    def __init__(self, config: VolumeRendererConfig | None = None):
        self.config = config or VolumeRendererConfig()

    def volume_render(self, colors: Tensor, densities: Tensor, z_vals: Tensor, rays_d: Tensor) -> dict[str, Any]:
        """Composite K samples on each of Q rays, front to back: alpha = 1 - exp(-density * length).

        Args:
            colors: float [Q, K, 3]. densities: float [Q, K] or [Q, K, 1], 1 / world unit.
            z_vals: float [Q, K], ascending, in units of the ray's direction; a sample reaches to the next one, the last
                one to infinity. rays_d: float [Q, 3], whose length turns z into distance.

        Returns:
            "rgb" [Q, 3], "depth" [Q] (sum of weight times distance), "alpha" [Q], "transmittance" [Q], "weights"
            [Q, K], and what `compute_losses` needs. Differentiable with respect to colours and densities.
        """
        num, per_ray = z_vals.shape
        if colors.shape != (num, per_ray, 3) or densities.numel() != num * per_ray or rays_d.shape != (num, 3):
            raise ValueError(
                f"volume_render: expected colors ({num}, {per_ray}, 3), densities ({num}, {per_ray}) and rays_d "
                f"({num}, 3) for z_vals {tuple(z_vals.shape)}, got {tuple(colors.shape)}, {tuple(densities.shape)} "
                f"and {tuple(rays_d.shape)}"
            )
        sigma = densities.reshape(-1)
        with torch.no_grad():
            t = z_vals.to(sigma.dtype) * rays_d.to(sigma.dtype).norm(dim=1, keepdim=True)
            dt = torch.cat([t.diff(dim=1), torch.full_like(t[:, :1], _LAST_STEP)], dim=1)
        ray_start = torch.arange(0, num * per_ray + 1, per_ray, device=sigma.device)
        rgb, transmittance, depth, weights = kernels_for(sigma).composite(
            ray_start, sigma, colors.reshape(-1, 3).to(sigma.dtype), t.reshape(-1), dt.reshape(-1), stop=0.0
        )
        if self.config.white_background:
            rgb = rgb + transmittance[:, None]
        return {
            "rgb": rgb,
            "depth": depth,
            "alpha": 1.0 - transmittance,
            "transmittance": transmittance,
            "weights": weights.view(num, per_ray),
            "t": t,
            # the last interval has no end of its own
            "dt": torch.cat([t.diff(dim=1), torch.zeros_like(t[:, :1])], dim=1),
        }

    def compute_losses(
        self, outputs: Mapping[str, Any], targets: Mapping[str, Any] | Tensor
    ) -> dict[str, Tensor]:
        """The loss terms of a batch, unweighted by name, and "total", their weighted sum.

        Args:
            outputs: of `volume_render` or of `InfNeRF.forward`; for the transparency term also "random_densities" and
                "random_gsd", float [n], of random points (`InfNeRF.random_densities`).
            targets: "rgb" float [Q, 3] (or that tensor itself), and if there is one "depth" float [Q], distance along
                the ray in world units; not finite or not above 0 where unknown.

        Terms:
            rgb: Huber or mean squared error of the colours. depth: mean over rays with a target of
            |depth - target| / target. distortion: of mip-NeRF 360, in log distance. transparency: mean of
            |exp(-density GSD) - 1|. A term whose inputs are not there is left out.
        """
        wanted = {"rgb": targets} if isinstance(targets, Tensor) else targets
        c, rgb = self.config, outputs["rgb"]
        target = torch.as_tensor(wanted["rgb"]).to(rgb.device, rgb.dtype)
        if target.shape != rgb.shape:
            raise SettingsError(f"targets rgb: expected {tuple(rgb.shape)} like the outputs, got {tuple(target.shape)}")
        terms: dict[str, Tensor] = {"rgb": colour_loss("mse" if c.loss == "mse" else "huber", rgb, target)}
        if wanted.get("depth") is not None:
            depth = torch.as_tensor(wanted["depth"]).to(rgb.device, rgb.dtype)
            known = torch.isfinite(depth) & (depth > 0)
            at = torch.where(known, depth, torch.ones_like(depth))
            miss = torch.where(known, (outputs["depth"] - at).abs() / at, torch.zeros_like(at))
            terms["depth"] = miss.sum() / known.sum().clamp(min=1)
        if c.lambda_distortion > 0 and "weights" in outputs:
            terms["distortion"] = _distortion(outputs)
        if outputs.get("random_densities") is not None:
            terms["transparency"] = transparency_loss(outputs["random_densities"], outputs["random_gsd"])
        total = sum((getattr(c, f"lambda_{name}") * term for name, term in terms.items()), rgb.new_zeros(()))
        return {**terms, "total": total}


def _distortion(outputs: Mapping[str, Any]) -> Tensor:
    weights = outputs["weights"]
    if "samples" in outputs:
        s: Samples = outputs["samples"]
        return distortion_loss(weights, s.t.log(), s.dt / s.t, s.ray_start, s.ray.long())
    num, per_ray = weights.shape
    t, dt = outputs["t"].reshape(-1), outputs["dt"].reshape(-1)
    start = torch.arange(0, num * per_ray + 1, per_ray, device=weights.device)
    ray = torch.arange(num, device=weights.device).repeat_interleave(per_ray)
    t = t.clamp(min=torch.finfo(t.dtype).tiny)
    return distortion_loss(weights.reshape(-1), t.log(), dt / t, start, ray)

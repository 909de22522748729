"""The Python API from photos to pictures, cell by cell, as in a notebook: `python quickstart.py [FOLDER]`.

Without a FOLDER of photos (COLMAP or transforms.json) it takes its own of a small synthetic city. Half a minute.
"""

# %% what is needed
import sys
import tempfile
from pathlib import Path

from infnerf_tiles import (
    InfNeRF,
    InfNeRFRenderer,
    InfNeRFRendererConfig,
    InfNeRFTrainer,
    InfNeRFTrainerConfig,
    Scene,
    StreamingRenderer,
    config_for_photos,
    read_dataset,
    render_demo_images,
)
from infnerf_tiles.synthetic.capture import write_city_dataset

out = Path(tempfile.mkdtemp(prefix="infnerf-quickstart-"))

# %% photos with poses
if len(sys.argv) > 1:
    photos = read_dataset(Path(sys.argv[1]))
else:
    write_city_dataset(out / "photos", blocks=(1, 1), num_photos=12, size=(80, 60), supersample=2)
    photos = read_dataset(out / "photos")

# %% a model as large and as deep as the photos ask for
config = config_for_photos(photos, cells=16, log2_table_size=12, hidden_dim=32, num_samples=32)
model = InfNeRF(config)

# %% training; the octree starts from the sparse points and adapts
trainer = InfNeRFTrainer(
    model,
    photos,
    InfNeRFTrainerConfig(num_epochs=2, rays_batch_size=1024, lr_init=2e-2, ckpt_dir=str(out / "checkpoints")),
)
before = trainer.validate()
after = trainer.train()
sys.stdout.write(f"held-out PSNR {before['psnr']:.1f} -> {after['psnr']:.1f} dB, {model.num_nodes} nodes\n")

# %% pictures from the best checkpoint
size = InfNeRFRendererConfig(image_width=80, image_height=60, save_depth=True)
renderer = InfNeRFRenderer.from_checkpoint(out / "checkpoints" / "best.pth", size)
picture = renderer.render_image(photos.cameras.camera_to_world[0], photos.cameras.camera(0))
files = render_demo_images(renderer, num_views=2, output_dir=out / "views")
film = renderer.render_spiral_video([0, 0, 0], 120.0, 3, 90.0, out / "spiral.mp4")

# %% as a scene store, which every command reads, and streamed from there within 8 MB
model.save(out / "city.zarr", photos)
with Scene.open(out / "city.zarr") as scene, StreamingRenderer(scene, memory_budget="8MB") as streaming:
    streamed = streaming.render(photos.cameras.camera(0), photos.cameras.camera_to_world[0])
again = InfNeRF.from_scene(out / "city.zarr")
sys.stdout.write(f"{len(files)} views, {[f.name for f in film]}, {again.num_nodes} nodes back; all in {out}\n")

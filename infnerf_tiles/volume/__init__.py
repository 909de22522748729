"""Volume: occupancy, rays into the octree, losses. Knows no store and no photos."""

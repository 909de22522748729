"""What other programs read of a scene: point clouds, 3D Tiles, depth maps, cameras.

cloud (surface points by node, from pictures) · point_files (PLY, LAS, LAZ) · tiles3d (GLB point tiles) · depth_maps ·
camera_files · earth (world to CRS and to the globe).
"""

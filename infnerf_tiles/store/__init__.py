"""Scenes on disk: `scene_store.SceneStore` and what belongs to it.

scene_store (open, rows, commit) · index (nodes and treelets) · journal · scratch (training state) · verify · repair ·
garbage · pack · facts (`info`). Below them: schema, root, row_arrays, bundle, array_layout, chunk_codec, documents,
guarded, location, locking.
"""

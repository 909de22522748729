"""The viewer in the browser: `app.Viewer` serves a page, draws on this side and sends pictures.

app (server, shared renderer) · visitor (one browser: controls and refinement) · overlays (boxes, photos, path) ·
shared (one renderer for all) · placement (world to page) · gate (who may come in). Needs the extra `viewer`.
"""

"""A synthetic city with known truth: geometry, photos, and the COLMAP data set that a survey of it would give."""

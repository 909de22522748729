"""infnerf-tiles: level-of-detail octrees of small neural radiance fields, trained and rendered region by region."""

__version__ = "0.1.0"

__all__ = ["__version__"]

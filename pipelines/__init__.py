"""Pipelines: the task graphs of build, train, evaluate and render (the only package that may import dask)."""

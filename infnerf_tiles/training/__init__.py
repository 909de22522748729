"""Training: pixels of a treelet, one trainer, and the task that a pipeline calls."""

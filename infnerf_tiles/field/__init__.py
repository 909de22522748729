"""Field: residual features of treelets, one decoder, per-photo appearance."""

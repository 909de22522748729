"""Settings files that ship with the package; each is a short difference from the defaults."""

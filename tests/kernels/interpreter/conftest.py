"""Triton reads TRITON_INTERPRET when it is imported, so these tests have a process of their own."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*"]

"""Triton reads TRITON_INTERPRET when it is imported, so these tests have a process of their own."""

import os

import pytest

pytest.register_assert_rewrite("cuda_checks", "decode_checks", "lane_checks", "march_checks", "update_checks")
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*"]

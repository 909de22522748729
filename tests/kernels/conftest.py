"""Asserts of checks that several test files share are reported in full."""

import pytest

pytest.register_assert_rewrite("cuda_checks", "decode_checks", "lane_checks", "march_checks", "update_checks")

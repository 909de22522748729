"""The Triton kernels compiled, on a GPU, at larger sizes."""

from typing import ClassVar

import pytest
import torch

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from cuda_checks import (
    CompositeChecks,
    DecodeIntoChecks,
    EncodeChecks,
    NestedChecks,
)
from decode_checks import DecodeChecks
from lane_checks import LanesChecks
from march_checks import MarchChecks, PackedChecks
from update_checks import AdamChecks, NoteChecks

pytestmark = pytest.mark.gpu
_GPU = torch.device("cuda")


class TestEncode(EncodeChecks):
    device, scale = _GPU, 40


class TestNested(NestedChecks):
    device, scale = _GPU, 40


class TestNote(NoteChecks):
    device, scale = _GPU, 4


class TestComposite(CompositeChecks):
    # twenty times as many rays, and the compiler's exp: 4.3e-5 was seen
    device, scale, near = _GPU, 20, 1e-4


class TestAdam(AdamChecks):
    device, scale = _GPU, 40


class TestMarch(MarchChecks):
    # the compiler's exp and log are not the host's to the last bit
    device, scale, differ = _GPU, 4, 0.01


class TestPacked(PackedChecks):
    device, scale = _GPU, 4


class TestDecode(DecodeChecks):
    device, scale = _GPU, 40
    formats: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 5e-3}


class TestDecodeInto(DecodeIntoChecks):
    device, scale = _GPU, 20


class TestLanes(LanesChecks):
    device, scale = _GPU, 20

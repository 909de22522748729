"""The Triton kernels in Triton's interpreter: right without a GPU, at small sizes."""

from typing import ClassVar

import torch
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

_HERE = torch.device("cpu")


class TestEncode(EncodeChecks):
    device, scale = _HERE, 1


class TestNested(NestedChecks):
    device, scale = _HERE, 1


class TestNote(NoteChecks):
    device, scale = _HERE, 1


class TestComposite(CompositeChecks):
    device, scale = _HERE, 1


class TestAdam(AdamChecks):
    device, scale = _HERE, 1


class TestMarch(MarchChecks):
    device, scale, differ = _HERE, 1, 0.0


class TestPacked(PackedChecks):
    device, scale = _HERE, 1


class TestDecode(DecodeChecks):
    # the interpreter has no products of bfloat16
    device, scale = _HERE, 1
    formats: ClassVar[dict[torch.dtype, float]] = {torch.float32: 1e-5, torch.float16: 5e-3}


class TestDecodeInto(DecodeIntoChecks):
    device, scale = _HERE, 1


class TestLanes(LanesChecks):
    device, scale = _HERE, 1

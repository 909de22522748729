"""One place chooses the kernels by device."""

import importlib.util
import logging

import pytest
import torch

from infnerf_tiles import kernels
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.kernels import cpu, reference


def test_each_device_has_its_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.for_device(torch.device("cpu")) is cpu
    assert kernels.for_device(torch.device("meta")) is reference


def test_without_triton_a_gpu_gets_the_torch_twin_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kernels._has_triton.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert kernels.for_device(torch.device("cuda", 0)) is reference
    finally:
        kernels._has_triton.cache_clear()
    assert [r.message for r in caplog.records if "Triton" in r.message] == [caplog.records[0].message]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.chosen_device("auto") == kernels.chosen_device("cpu") == torch.device("cpu")
    for version, reason in ((None, "no CUDA"), ("13.0", "no device is visible")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(SettingsError, match=f"device cuda: .*{reason}.*--device cpu or auto"):
            kernels.chosen_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernels.chosen_device("cuda") == torch.device("cuda")


def test_all_twins_offer_the_same() -> None:
    # the decoder's layers with their gradient are torch's own work in the readable twin
    extra = {"set_threads", "decode", "decodes", "decode_density"}
    assert set(cpu.__all__) - extra == set(reference.__all__)


def test_the_twin_for_gpus_offers_what_that_for_processors_does() -> None:
    cuda = pytest.importorskip("infnerf_tiles.kernels.cuda", exc_type=ImportError)
    assert set(cuda.__all__) == set(cpu.__all__) - {"set_threads"}

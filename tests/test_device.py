"""A precision that the processor has no instructions for is named, and only that."""

from __future__ import annotations

import platform
import warnings

import pytest
import torch

from labkit.device import warn_if_slow


@pytest.mark.parametrize(
    ("precision", "amx", "avx512_bf16", "amx_fp16", "slow"),
    [
        ("fp32", False, False, False, False),
        ("bf16", False, False, False, True),
        ("bf16", True, False, False, False),
        ("bf16", False, True, False, False),
        ("fp16", True, True, False, True),
        ("fp16", False, False, True, False),
    ],
)
@pytest.mark.parametrize(("machine", "device"), [("x86_64", "cpu"), ("x86_64", "cuda"), ("aarch64", "cpu")])
def test_a_slow_precision_is_warned_about(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    amx: bool,
    avx512_bf16: bool,
    amx_fp16: bool,
    slow: bool,
    machine: str,
    device: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: amx_fp16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_slow(precision, torch.device(device))
    expected = slow and (machine, device) == ("x86_64", "cpu")
    assert [
        f"precision='{precision}': this CPU has no instructions" in str(each.message) for each in caught
    ] == ([True] if expected else [])

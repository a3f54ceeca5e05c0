"""What runs where: forced backends, fallbacks and their warnings."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

pytest.importorskip("triton")

from ttt_docs.errors import UsageError
from ttt_docs.kernels import dispatch
from ttt_docs.kernels.attention import triton_tiles as attention
from ttt_docs.kernels.backends import REFERENCE
from ttt_docs.kernels.dispatch import SdpaKernels, gpu_kernels, kernels_for, with_flash

CPU = torch.device("cpu")
Warns = Callable[[str | None], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    dispatch._warn.cache_clear()


@pytest.fixture
def warns(caplog: pytest.LogCaptureFixture) -> Warns:
    @contextmanager
    def warns(match: str | None) -> Iterator[None]:
        """What runs inside logs one warning that matches; None: it logs nothing."""
        caplog.clear()
        yield
        assert len(caplog.records) == (match is not None)
        assert match is None or re.search(match, caplog.text)

    return warns


def test_forcing_what_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TTT_DOCS_KERNELS", "triton")
    with pytest.raises(UsageError, match="CUDA"):
        kernels_for(CPU)
    monkeypatch.setenv("TTT_DOCS_KERNELS", "flash")
    with pytest.raises(UsageError, match="flash"):
        kernels_for(CPU)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    monkeypatch.setenv("TTT_DOCS_KERNELS", "triton")
    with pytest.raises(UsageError, match="not installed"):
        kernels_for(CPU)


def test_without_triton_plain_pytorch_runs_after_one_warning(monkeypatch: pytest.MonkeyPatch, warns: Warns) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    with warns("Triton kernels are not used: triton is not installed"):
        kernels = gpu_kernels("auto", torch.device("cuda"))
    assert kernels.name == "pytorch" and not kernels.asynchronous
    with warns(None):
        gpu_kernels("auto", torch.device("cuda"))


def test_a_call_that_a_kernel_does_not_take_falls_back_with_one_warning(warns: Warns) -> None:
    q, k, v = (torch.randn(1, 1, 3, 320) for _ in range(3))
    kernels = gpu_kernels("auto", CPU)  # in the interpreter
    with warns("head dimension 320"):
        found = kernels.window_attention(q, k, v, 2, None, (k, v))
    torch.testing.assert_close(found, REFERENCE.window_attention(q, k, v, 2, None, (k, v)))
    with warns(None):
        kernels.window_attention(q, k, v, 2, None, (k, v))
    with warns("int64"), pytest.raises(RuntimeError):  # nor does the definition take them
        kernels.swiglu(torch.ones(1, 2, 4, dtype=torch.int64), torch.randn(6, 4), torch.randn(4, 3))
    with pytest.raises(UsageError, match="head dimension 320"):
        gpu_kernels("triton", CPU).window_attention(q, k, v, 2, None, (k, v))


def test_data_types_that_only_the_interpreter_takes(monkeypatch: pytest.MonkeyPatch, warns: Warns) -> None:
    kernels, strict = gpu_kernels("auto", CPU), gpu_kernels("triton", CPU)
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    with warns("RMSNorm kernel, which does not take float64"):
        found = kernels.rms_norm(x, weight, 1e-6)
    assert torch.equal(found, REFERENCE.rms_norm(x, weight, 1e-6))
    q, k, v = (torch.randn(1, 1, 3, 128) for _ in range(3))
    with warns("float32 with head dimension 128"):
        found = kernels.window_attention(q, k, v, 2, None, (k, v))
    torch.testing.assert_close(found, REFERENCE.window_attention(q, k, v, 2, None, (k, v)))
    with pytest.raises(UsageError, match="float64"):
        strict.rms_norm(x, weight, 1e-6)


def test_devices_with_little_shared_memory(monkeypatch: pytest.MonkeyPatch, warns: Warns) -> None:
    cards = {(8, 0): (False, 8), (8, 9): (True, 8), (9, 0): (False, 9), (10, 0): (False, 9), (12, 0): (True, 8)}
    for index, (capability, expected) in enumerate(cards.items()):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, it=capability: it)
        card = torch.device("cuda", index)
        assert (dispatch._is_small(card), attention.generation(card)) == expected
    attention.generation.cache_clear()
    monkeypatch.setattr(dispatch, "_is_small", lambda device: True)
    q, k, v = (torch.randn(1, 1, 3, 160) for _ in range(3))
    with warns("head dimension 160 on a device with so little shared memory"):
        found = gpu_kernels("auto", CPU).window_attention(q, k, v, 2, None, (k, v))
    torch.testing.assert_close(found, REFERENCE.window_attention(q, k, v, 2, None, (k, v)))


def test_rows_too_long_for_a_program_fall_back(warns: Warns) -> None:
    x, weight = torch.randn(1, dispatch.MAX_NORM_DIM + 1), torch.ones(dispatch.MAX_NORM_DIM + 1)
    with warns(r"rows of 8193 \(at most 8192\)"):
        found = gpu_kernels("auto", CPU).rms_norm(x, weight, 1e-6)
    assert torch.equal(found, REFERENCE.rms_norm(x, weight, 1e-6))


def test_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch, warns: Warns) -> None:
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    old = torch.device("cuda")
    with warns(r"an old card has compute capability 7\.5, they need 8\.0"):
        assert gpu_kernels("auto", old).name == "pytorch"
    with pytest.raises(UsageError, match=r"TTT_DOCS_KERNELS=triton cannot run: an old card"):
        gpu_kernels("triton", old)


@pytest.mark.parametrize(("new", "keys", "window"), [(5, 5, None), (5, 9, None), (5, 9, 4), (6, 6, 2)])
def test_plain_attention_without_gradient(new: int, keys: int, window: int | None) -> None:
    q = torch.randn(2, 4, new, 8)
    k, v = (torch.randn(2, 2, keys, 8) for _ in range(2))
    newest = k[:, :, keys - new :], v[:, :, keys - new :]
    found = SdpaKernels().window_attention(q, k, v, window, None, newest)
    torch.testing.assert_close(found, REFERENCE.window_attention(q, k, v, window, None, newest))


def test_flash_attention_takes_only_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        calls.append(window)
        return q

    monkeypatch.setattr(dispatch, "_flash_attention", flash)
    run = with_flash(SdpaKernels()).window_attention
    q, k, v = (torch.randn(1, 1, 4, 16, dtype=torch.bfloat16) for _ in range(3))
    run(q, k, v, 3, None, (k, v))
    assert calls == [3]
    run(q.requires_grad_(), k, v, 3, None, (k, v))  # its gradient would have no gradient
    run(q.detach().float(), k.float(), v.float(), 3, None, (k.float(), v.float()))
    assert calls == [3]

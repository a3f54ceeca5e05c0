"""Window attention through the compiled kernel in native.cpp, in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.kernels.attention.cpu import CPU_PASSES, Gradients, Inputs, Outputs, Passes, run
from ttt_docs.kernels.attention.definition import Newest, Sinks
from ttt_docs.kernels.native.calls import call
from ttt_docs.kernels.workspace import empty_token_major

HEAD_DIMS = (32, 64, 96, 128)
#: Fewer queries than this do not pay for packing the window's keys and values.
LEAST_QUERIES = 8


#: The matrices of `Attention` in native.cpp, in its order: bfloat16 [batch, heads, rows, head_dim].
MATRICES = ("q", "k", "v", "sink_q", "sink_k", "sink_v", "out", "grad", "grad_q", "grad_k", "grad_v", "grad_sink_q")


def _run(function: str, inputs: Inputs, lse: Tensor, **others: Tensor) -> None:
    q, k, v, window, sinks = inputs
    (batch, heads, queries, head_dim), (_, kv_heads, keys, _) = q.shape, k.shape
    matrices, hidden = {"q": q, "k": k, "v": v} | others, None
    if sinks is not None:
        matrices |= {"sink_q": sinks.q, "sink_k": sinks.k, "sink_v": sinks.v}
        hidden = None if sinks.hidden is None else sinks.hidden.contiguous()
    matrices = {name: x if x.stride(-1) == 1 else x.contiguous() for name, x in matrices.items()}
    count = 0 if sinks is None else sinks.k.shape[2]
    numbers = [batch, heads, kv_heads, queries, keys, head_dim, min(window or keys, keys), count]
    for x in map(matrices.get, MATRICES):  # address and strides, as `Matrix` has them
        numbers += (0, 0, 0, 0) if x is None else (x.data_ptr(), *x.stride()[:3])
    call(function, torch.tensor([*numbers, 0 if hidden is None else hidden.data_ptr(), lse.data_ptr()]))


def made_for(q: Tensor) -> bool:
    """Whether the compiled kernel takes queries like these [batch, heads, new, head_dim]."""
    return q.dtype == torch.bfloat16 and q.shape[-1] in HEAD_DIMS and q.shape[2] >= LEAST_QUERIES


def forward(inputs: Inputs) -> Outputs:
    """The compiled forward pass where it was made for the queries, else the tiles of `cpu.py`."""
    if not made_for(inputs.q):
        return CPU_PASSES.forward(inputs)
    out, lse = empty_token_major(inputs.q), inputs.q.new_empty(inputs.q.shape[:3], dtype=torch.float32)
    _run("window_attention_forward", inputs, lse, out=out)
    return out, lse, None


def backward(inputs: Inputs, out: Tensor, lse: Tensor, grad: Tensor, newest: int) -> Gradients:
    """The newest keys are those of the queries. Gradients of the sinks' keys and values are left out."""
    q, k, _, _, sinks = inputs
    grads = {"grad_q": empty_token_major(q)}
    grads |= {name: empty_token_major(k[:, :, k.shape[2] - newest :]) for name in ("grad_k", "grad_v")}
    if sinks is not None:
        grads["grad_sink_q"] = empty_token_major(q)
    _run("window_attention_backward", inputs, lse, out=out, grad=grad, **grads)
    return grads["grad_q"], grads["grad_k"], grads["grad_v"], grads.get("grad_sink_q")


NATIVE_PASSES = Passes(forward, backward)


def window_attention_native(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, sinks: Sinks | None = None, newest: Newest = None
) -> Tensor:
    """As `window_attention_cpu`, which still does what the compiled kernel was not made for: other data types, and
    gradient for cached keys and values."""
    newest = (k, v) if newest is None or k.requires_grad else newest
    learns = torch.is_grad_enabled() and newest[0].requires_grad
    fits = made_for(q) and not (learns and newest[0].shape[2] > q.shape[2])
    return run(NATIVE_PASSES if fits else CPU_PASSES, Inputs(q, k, v, window, sinks), newest)

"""QK norm and RoPE on the device, twice differentiable. `definition.py` defines the results.

Why this is a pass of its own and not part of the attention's loads: there a key would be normed and turned again by
every tile of queries that sees it (64 of them, for a window of 8,192), here it is once, on the way into the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ttt_docs.kernels.heads.definition import Heads, HeadsPlan
from ttt_docs.kernels.heads.triton_kernels import heads_backward, heads_forward, heads_second
from ttt_docs.kernels.triton_tiles import accumulator, token_major, traced, wanted, wide

WARPS = 4


def _launch(
    qkv: Tensor, q_norm: Tensor | None, plan: HeadsPlan
) -> tuple[tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """The grid, the sizes and strides of qkv, and what is constant."""
    batch, tokens, all_heads, dim = qkv.shape
    heads = all_heads - 2 * plan.kv_heads
    width = triton.next_power_of_2(dim // 2)
    rows = max(1, WARPS * 32 * 8 // width)
    meta = {
        "EPS": plan.eps,
        "NORM": q_norm is not None,
        "SINKS": 0 if not plan.for_sinks else 1 if plan.sink_turn is None else 2,
        "HEADS": heads,
        "KV_HEADS": plan.kv_heads,
        "HALF": dim // 2,
        "WIDTH": width,
        "ROWS": rows,
        "ACC": accumulator(qkv.dtype),
        "num_warps": WARPS,
    }
    grid = triton.cdiv(batch * tokens * heads, rows), 3
    return grid, (tokens, batch, qkv.stride(0), qkv.stride(1)), meta


def _angles(plan: HeadsPlan) -> tuple[Tensor | None, ...]:
    return (*(t.contiguous() for t in plan.turn), *(plan.sink_turn or (None, None)))


def _empty(qkv: Tensor, heads: int) -> Tensor:
    """[batch, heads, tokens, head_dim], in memory token by token."""
    return qkv.new_empty(*qkv.shape[:2], heads, qkv.shape[3]).transpose(1, 2)


def _forward(qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, plan: HeadsPlan) -> Heads:
    grid, sizes, meta = _launch(qkv, q_norm, plan)
    q = _empty(qkv, meta["HEADS"])
    sink_q = _empty(qkv, meta["HEADS"]) if plan.for_sinks else None
    # An alias that autograd takes for a tensor of its own: a view would remember the cache it is a part of.
    k, v = (_empty(qkv, plan.kv_heads) for _ in range(2)) if plan.slots is None else (s.detach() for s in plan.slots)
    heads_forward[grid](
        qkv, q_norm, k_norm, *_angles(plan), q, k, v, sink_q, *sizes, *k.stride()[:3], *v.stride()[:3], **meta
    )
    return Heads(q, k, v, sink_q)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, plan: HeadsPlan
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(qkv, q_norm, k_norm)
        ctx.plan = plan._replace(slots=None)
        return tuple(_forward(qkv, q_norm, k_norm, plan))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, q_norm, k_norm = ctx.saved_tensors
        for_norms = q_norm is not None and (wanted(ctx, 1) or wanted(ctx, 2))
        grads = tuple(None if g is None else token_major(g) for g in grads)
        return *_HeadsBackward.apply(qkv, q_norm, k_norm, *grads, ctx.plan, for_norms), None


class _HeadsBackward(torch.autograd.Function):
    """Gradients for qkv and, if asked for, both norms' weights."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None,
        grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, grad_sink_q: Tensor | None, plan: HeadsPlan, for_norms: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.save_for_backward(qkv, q_norm, k_norm, grad_q, grad_k, grad_sink_q)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        grid, sizes, meta = _launch(qkv, q_norm, plan)
        grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        shares = qkv.new_empty(2, grid[0], qkv.shape[3], dtype=wide(qkv.dtype)) if for_norms else None
        heads_backward[grid](
            qkv, q_norm, k_norm, *_angles(plan), grad_q, grad_k, grad_v, grad_sink_q, grad_qkv, shares, *sizes,
            FOR_WEIGHT=for_norms, **meta,
        )  # fmt: skip
        return grad_qkv, *_summed(shares, q_norm)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor | None, *of_norms: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, q_norm, k_norm, grad_q, grad_k, grad_sink_q = ctx.saved_tensors
        if a is None and of_norms == (None, None):
            return (None,) * 9
        a = torch.zeros(qkv.shape, dtype=qkv.dtype, device=qkv.device) if a is None else a.contiguous()
        e = None
        if of_norms != (None, None):
            assert q_norm is not None
            e = torch.stack([torch.zeros_like(q_norm) if own is None else own for own in of_norms])
        grid, sizes, meta = _launch(qkv, q_norm, ctx.plan)
        of_q = _empty(qkv, meta["HEADS"])
        of_k, of_v = (_empty(qkv, ctx.plan.kv_heads) for _ in range(2))
        of_sink_q = _empty(qkv, meta["HEADS"]) if ctx.plan.for_sinks else None
        of_qkv = None if q_norm is None else torch.empty_like(a)
        for_norms = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        shares = qkv.new_empty(2, grid[0], qkv.shape[3], dtype=wide(qkv.dtype)) if for_norms else None
        heads_second[grid](
            qkv, q_norm, k_norm, *_angles(ctx.plan), grad_q, grad_k, grad_sink_q, a, e,
            of_q, of_k, of_v, of_sink_q, of_qkv, shares, *sizes,
            WITH_E=e is not None, FOR_WEIGHT=for_norms, **meta,
        )  # fmt: skip
        return of_qkv, *_summed(shares, q_norm), of_q, of_k, of_v, of_sink_q, None, None


def _summed(shares: Tensor | None, like: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if shares is None or like is None:
        return None, None
    q, k = shares.sum(1).to(like.dtype)
    return q, k


def heads_triton(qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, plan: HeadsPlan) -> Heads:
    """As `heads_reference`, differentiable twice with respect to qkv and the norms' weights."""
    if not (qkv.stride(3) == 1 and qkv.stride(2) == qkv.shape[3]):
        qkv = qkv.contiguous()
    inputs = qkv, q_norm, k_norm
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return Heads(*_Heads.apply(*(None if x is None else traced(x) for x in inputs), plan))
    return _forward(qkv, q_norm, k_norm, plan)

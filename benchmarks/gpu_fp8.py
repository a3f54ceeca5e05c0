"""Frozen products of the prefix in fp8: an experiment of `gpu_prefill.py --fp8`.

Inside `with FP8Products(model):` a product with one of the prefix blocks' weights takes e4m3 operands, each row of the
activations and each row of the weight scaled by its own largest entry, and gives bfloat16. Nothing else changes: fast
weights, attention, norms, the suffix and the head stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ttt_docs.model.decoder import Decoder

LARGEST = torch.finfo(torch.float8_e4m3fn).max


@triton.jit
def _quantize(x, out, scales, columns, WIDTH: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    value = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    tl.store(out + row * columns + column, (value / scale).to(out.dtype.element_ty), mask=inside)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> e4m3 of the same shape, and float32 scales [rows, 1]."""
    x = x.contiguous()
    if not x.is_cuda:
        scale = x.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST
        return (x.float() / scale).to(torch.float8_e4m3fn), scale
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    width = triton.next_power_of_2(x.shape[1])
    _quantize[(x.shape[0],)](
        x, out, scales, x.shape[1], WIDTH=width, LARGEST=LARGEST, num_warps=8 if width > 2048 else 4
    )
    return out, scales


class FP8Products(TorchFunctionMode):
    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        for i in range(model.config.prefix_blocks):
            block = model.block(i)
            for weight in (
                block.attention.wqkv.weight,
                block.attention.wo.weight,
                block.mlp.w13.weight,
                block.mlp.w2.weight,
            ):
                values, scales = quantized(weight.detach())
                self.weights[id(weight)] = values, scales

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if function is F.linear and id(args[1]) in self.weights:
            return self._product(args[0], *self.weights[id(args[1])], *args[2:3])
        return function(*args, **(kwargs or {}))

    def _product(self, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
        values, own = quantized(x.flatten(0, -2))
        if x.is_cuda:
            out = torch._scaled_mm(
                values, weight.t(), scale_a=own, scale_b=scales.t(), out_dtype=x.dtype, use_fast_accum=True
            )
        else:
            out = ((values.float() * own) @ (weight.float() * scales).t()).to(x.dtype)
        out = out.view(*x.shape[:-1], weight.shape[0])
        return out if bias is None else out + bias

"""What stands between the products of a SwiGLU MLP: element-wise, each input read once and each output written once.

`both` [tokens, 2 * HIDDEN] holds the gates and, right of them, the ups; h = silu(gate) * up. With s = sigmoid(gate),
silu' = s (1 + gate (1 - s)) and silu'' = s (1 - s) (2 + gate (1 - 2 s)).
"""

import triton
import triton.language as tl


@triton.jit
def _places(count, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """Where a program's elements lie in [tokens, HIDDEN] and (the gates) in [tokens, 2 * HIDDEN]."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return element, element + element // HIDDEN * HIDDEN, element < count


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gate_forward(both, h, count, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    element, gates, inside = _places(count, HIDDEN, BLOCK)
    gate = tl.load(both + gates, mask=inside, other=0.0).to(ACC)
    up = tl.load(both + gates + HIDDEN, mask=inside, other=0.0).to(ACC)
    tl.store(h + element, (gate * _sigmoid(gate) * up).to(h.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward(
    both, grad_h, grad_both, h, count,
    WITH_H: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_both from grad_h; with WITH_H also h again, which the forward pass did not keep."""
    element, gates, inside = _places(count, HIDDEN, BLOCK)
    gate = tl.load(both + gates, mask=inside, other=0.0).to(ACC)
    up = tl.load(both + gates + HIDDEN, mask=inside, other=0.0).to(ACC)
    grad = tl.load(grad_h + element, mask=inside, other=0.0).to(ACC)
    s = _sigmoid(gate)
    silu = gate * s
    grad_gate = grad * up * (s + silu * (1.0 - s))
    tl.store(grad_both + gates, grad_gate.to(grad_both.dtype.element_ty), mask=inside)
    tl.store(grad_both + gates + HIDDEN, (grad * silu).to(grad_both.dtype.element_ty), mask=inside)
    if WITH_H:
        tl.store(h + element, (silu * up).to(h.dtype.element_ty), mask=inside)


@triton.jit
def gate_second(
    both, grad_h, a, b, of_grad_h, of_both, count,
    WITH_B: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Gradients for grad_h and for both, given the cotangents a of grad_both and (WITH_B) b of h."""
    element, gates, inside = _places(count, HIDDEN, BLOCK)
    gate = tl.load(both + gates, mask=inside, other=0.0).to(ACC)
    up = tl.load(both + gates + HIDDEN, mask=inside, other=0.0).to(ACC)
    grad = tl.load(grad_h + element, mask=inside, other=0.0).to(ACC)
    a_gate = tl.load(a + gates, mask=inside, other=0.0).to(ACC)
    a_up = tl.load(a + gates + HIDDEN, mask=inside, other=0.0).to(ACC)
    s = _sigmoid(gate)
    silu = gate * s
    slope = s + silu * (1.0 - s)
    bend = s * (1.0 - s) * (2.0 + gate * (1.0 - 2.0 * s))
    d_grad = a_gate * up * slope + a_up * silu
    d_up = a_gate * grad * slope
    d_gate = a_gate * grad * up * bend + a_up * grad * slope
    if WITH_B:
        cotangent = tl.load(b + element, mask=inside, other=0.0).to(ACC)
        d_up += cotangent * silu
        d_gate += cotangent * up * slope
    tl.store(of_grad_h + element, d_grad.to(of_grad_h.dtype.element_ty), mask=inside)
    tl.store(of_both + gates, d_gate.to(of_both.dtype.element_ty), mask=inside)
    tl.store(of_both + gates + HIDDEN, d_up.to(of_both.dtype.element_ty), mask=inside)

"""The inner step over all fast weights in two launches, no matter how many matrices.

The matrices come as a table of addresses, int64 [matrices, FIELDS]: the gradient, the weights before and after
(float32), and their copy in the products' dtype, each
followed by its distance from one document to the next (in elements), and
last the matrix's size. A program does CHUNK elements of one matrix of one document: grid (chunks, matrices, documents).
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(9)


@triton.jit
def _address(table, matrix, field: tl.constexpr, DTYPE: tl.constexpr):
    entry = table + matrix * FIELDS + field
    base = tl.load(entry).to(tl.pointer_type(DTYPE))
    return base + tl.load(entry + 1) * tl.program_id(2)


@triton.jit
def squares(
    table, sums, chunks, GRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [documents, matrices, chunks]: the sum of the gradient's squares in each chunk."""
    matrix, first = tl.program_id(1), tl.program_id(0).to(tl.int64) * CHUNK
    size = tl.load(table + matrix * FIELDS + 8)
    grad = _address(table, matrix, 0, GRAD)
    total = tl.zeros([BLOCK], dtype=ACC)
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        g = tl.load(grad + element, mask=element < size, other=0.0).to(ACC)
        total += g * g
    place = (tl.program_id(2) * tl.num_programs(1) + matrix) * chunks + tl.program_id(0)
    tl.store(sums + place, tl.sum(total, 0))


@triton.jit
def _sum(sums, count, STEP: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros([STEP], dtype=ACC)
    for start in range(0, count, STEP):
        index = start + tl.arange(0, STEP)
        total += tl.load(sums + index, mask=index < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def update(
    table, sums, norms, factors, chunks, rate, limit,
    NORMALIZED: tl.constexpr, GRAD: tl.constexpr, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """after = before - rate * factor * gradient, and its copy; norms and factors [documents] for the reports.

    The factor is the global clip, or with NORMALIZED one over the matrix's own norm. Every program adds up the same
    sums in the same order. A gradient that is not finite changes nothing.
    """
    matrix, document = tl.program_id(1), tl.program_id(2)
    matrices = tl.num_programs(1)
    of_document = sums + document * matrices * chunks
    norm = tl.sqrt(_sum(of_document, matrices * chunks, STEP, ACC))
    finite = norm < float("inf")  # false for NaN too
    factor = tl.where((limit > 0) & (norm > limit), limit / norm, 1.0)
    if (tl.program_id(0) == 0) & (matrix == 0):
        tl.store(norms + document, norm)
        if NORMALIZED:
            tl.store(factors + document, 1.0)
        else:
            tl.store(factors + document, factor)
    if NORMALIZED:
        own = tl.sqrt(_sum(of_document + matrix * chunks, chunks, STEP, ACC))
        factor = tl.where(own > 0, 1.0 / own, 0.0)
    size = tl.load(table + matrix * FIELDS + 8)
    grad = _address(table, matrix, 0, GRAD)
    before = _address(table, matrix, 2, WEIGHT)
    after = _address(table, matrix, 4, WEIGHT)
    product = _address(table, matrix, 6, PRODUCT)
    first = tl.program_id(0).to(tl.int64) * CHUNK
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        inside = element < size
        g = tl.load(grad + element, mask=inside, other=0.0).to(ACC)
        w = tl.load(before + element, mask=inside, other=0.0)
        w = tl.where(finite, w - rate * factor * g, w)
        tl.store(after + element, w, mask=inside)
        tl.store(product + element, w.to(PRODUCT), mask=inside)


@triton.jit
def undo(
    table, accepted, WEIGHT: tl.constexpr, PRODUCT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts the weights of before in place of those after, for documents whose update was not accepted."""
    if tl.load(accepted + tl.program_id(2)) == 0:
        matrix, first = tl.program_id(1), tl.program_id(0).to(tl.int64) * CHUNK
        size = tl.load(table + matrix * FIELDS + 8)
        before = _address(table, matrix, 2, WEIGHT)
        after = _address(table, matrix, 4, WEIGHT)
        product = _address(table, matrix, 6, PRODUCT)
        for step in range(0, CHUNK, BLOCK):
            element = first + step + tl.arange(0, BLOCK)
            inside = element < size
            w = tl.load(before + element, mask=inside, other=0.0)
            tl.store(after + element, w, mask=inside)
            tl.store(product + element, w.to(PRODUCT), mask=inside)

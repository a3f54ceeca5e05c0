"""The inner step over all fast weights in two launches, five for `balanced`, no matter how many matrices.

Fast weights, their copy for the products and directions are one tensor each, [documents, n], in the layout of
`layout.FastLayout`: w1, w3, w2 of each block, all of `size` numbers. Gradients come apart, w13 and w2 of each block:
their addresses stand in a table, int64 [2 * blocks]. Matrices are counted as learned rates are: w1, w2, w3 of each
block. Unless it says otherwise, a program does CHUNK elements of one matrix of one document: grid (chunks, matrices,
documents).

What balances a gradient is float [documents, matrices, 2, lines]: factors of its rows, then of its columns; `lines` is
the larger number of either.
"""

import triton
import triton.language as tl


@triton.jit
def _grad_of(table, matrix, size, DTYPE: tl.constexpr):
    """Where the matrix's gradient begins. A document's w13 holds two matrices."""
    own = matrix % 3
    base = tl.load(table + matrix // 3 * 2 + (own == 1)).to(tl.pointer_type(DTYPE))
    return base + size * (tl.program_id(2) * tl.where(own == 1, 1, 2) + (own == 2))


@triton.jit
def _start(matrix, size):
    """Where the matrix begins in one tensor of all documents' matrices."""
    own = matrix % 3
    return size * (tl.program_id(2) * tl.num_programs(1) + matrix - own + (3 - own) % 3)


@triton.jit
def _shape(matrix, hidden, dim):
    """Rows and columns."""
    return tl.where(matrix % 3 == 1, dim, hidden), tl.where(matrix % 3 == 1, hidden, dim)


@triton.jit
def _gradient(grad, element, inside, matrix, columns, balance, lines, BALANCED: tl.constexpr, ACC: tl.constexpr):
    g = tl.load(grad + element, mask=inside, other=0.0).to(ACC)
    if BALANCED:
        of_rows = balance + (tl.program_id(2) * tl.num_programs(1) + matrix) * 2 * lines
        at = element.to(tl.int32)
        row, column = at // columns, at % columns
        g *= tl.load(of_rows + row, mask=inside, other=0.0) * tl.load(of_rows + lines + column, mask=inside, other=0.0)
    return g


@triton.jit
def squares(
    table, hidden, dim, sums, chunks, balance, lines,
    BALANCED: tl.constexpr, GRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [documents, matrices, chunks]: the sum of the (balanced) gradient's squares in each chunk."""
    matrix, first = tl.program_id(1), tl.program_id(0).to(tl.int64) * CHUNK
    size = hidden.to(tl.int64) * dim
    grad = _grad_of(table, matrix, size, GRAD)
    _, columns = _shape(matrix, hidden, dim)
    total = tl.zeros([BLOCK], dtype=ACC)
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        g = _gradient(grad, element, element < size, matrix, columns, balance, lines, BALANCED, ACC)
        total += g * g
    place = (tl.program_id(2) * tl.num_programs(1) + matrix) * chunks + tl.program_id(0)
    tl.store(sums + place, tl.sum(total, 0))


@triton.jit
def squares_by_line(
    table, hidden, dim, by_row, by_column, lines,
    GRAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of squares: by_row [documents, matrices, 2, lines], of which the first half is written, and by_column
    [documents, matrices, tiles, lines] over ROWS rows each. Grid (tiles, matrices, documents)."""
    tile, matrix = tl.program_id(0), tl.program_id(1)
    here = (tl.program_id(2) * tl.num_programs(1) + matrix).to(tl.int64)
    rows, columns = _shape(matrix, hidden, dim)
    grad = _grad_of(table, matrix, hidden.to(tl.int64) * dim, GRAD)
    row = tile * ROWS + tl.arange(0, ROWS)
    sums = by_column + (here * tl.num_programs(0) + tile) * lines
    total = tl.zeros([ROWS], dtype=ACC)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        g = tl.load(grad + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.sum(g * g, 1)
        tl.store(sums + column, tl.sum(g * g, 0), mask=column < columns)
    tl.store(by_row + here * 2 * lines + row, total, mask=row < rows)


@triton.jit
def _factor(mean):
    return tl.where(mean > 0, 1.0 / tl.sqrt(tl.sqrt(mean)), 1.0)


@triton.jit
def balance_of(hidden, dim, balance, by_column, tiles, lines, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """Factors from the sums of `squares_by_line`, rows' in place. Grid (blocks of lines, matrices, documents)."""
    matrix = tl.program_id(1)
    here = (tl.program_id(2) * tl.num_programs(1) + matrix).to(tl.int64)
    rows, columns = _shape(matrix, hidden, dim)
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = balance + here * 2 * lines + line
    tl.store(own, _factor(tl.load(own, mask=line < rows, other=0.0) / columns), mask=line < rows)
    total = tl.zeros([BLOCK], dtype=ACC)
    for tile in range(0, tiles):
        total += tl.load(by_column + (here * tiles + tile) * lines + line, mask=line < columns, other=0.0)
    tl.store(own + lines, _factor(total / rows), mask=line < columns)


@triton.jit
def _sum(sums, count, STEP: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros([STEP], dtype=ACC)
    for start in range(0, count, STEP):
        index = start + tl.arange(0, STEP)
        total += tl.load(sums + index, mask=index < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def update(
    table, hidden, dim, weights, after, products, sums, own_sums, norms, factors, chunks, balance, lines, rate, rates,
    limit,
    NORMALIZED: tl.constexpr, BALANCED: tl.constexpr, GRAD: tl.constexpr, PRODUCT: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """after = weights - rate * rates[matrix] * factor * (balanced) gradient, and its copy; norms and factors
    [documents] for the reports.

    The factor is the global clip, or with NORMALIZED one over the matrix's own norm, from own_sums. Every program adds
    up the same sums in the same order. A gradient that is not finite changes nothing.
    """
    matrix, document = tl.program_id(1), tl.program_id(2)
    matrices = tl.num_programs(1)
    norm = tl.sqrt(_sum(sums + document * matrices * chunks, matrices * chunks, STEP, ACC))
    finite = norm < float("inf")  # false for NaN too
    factor = tl.where((limit > 0) & (norm > limit), limit / norm, 1.0)
    if (tl.program_id(0) == 0) & (matrix == 0):
        tl.store(norms + document, norm)
        if NORMALIZED:
            tl.store(factors + document, 1.0)
        else:
            tl.store(factors + document, factor)
    if NORMALIZED:
        own = tl.sqrt(_sum(own_sums + (document * matrices + matrix) * chunks, chunks, STEP, ACC))
        factor = tl.where(own > 0, 1.0 / own, 0.0)
    factor *= rate * tl.load(rates + matrix)
    size = hidden.to(tl.int64) * dim
    grad, start = _grad_of(table, matrix, size, GRAD), _start(matrix, size)
    _, columns = _shape(matrix, hidden, dim)
    first = tl.program_id(0).to(tl.int64) * CHUNK
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        inside = element < size
        g = _gradient(grad, element, inside, matrix, columns, balance, lines, BALANCED, ACC)
        w = tl.load(weights + start + element, mask=inside, other=0.0)
        w = tl.where(finite, w - factor * g, w)
        tl.store(after + start + element, w, mask=inside)
        tl.store(products + start + element, w.to(PRODUCT), mask=inside)


@triton.jit
def products_along(
    table, hidden, dim, along, sums, dots, chunks,
    GRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums as `squares` makes them, and dots [documents, matrices, chunks]: of the gradient g and `along`, which has
    the weights' layout."""
    matrix, first = tl.program_id(1), tl.program_id(0).to(tl.int64) * CHUNK
    size = hidden.to(tl.int64) * dim
    grad, start = _grad_of(table, matrix, size, GRAD), _start(matrix, size)
    total = tl.zeros([BLOCK], dtype=ACC)
    dot = tl.zeros([BLOCK], dtype=ACC)
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        g = tl.load(grad + element, mask=element < size, other=0.0).to(ACC)
        total += g * g
        dot += g * tl.load(along + start + element, mask=element < size, other=0.0)
    place = (tl.program_id(2) * tl.num_programs(1) + matrix) * chunks + tl.program_id(0)
    tl.store(sums + place, tl.sum(total, 0))
    tl.store(dots + place, tl.sum(dot, 0))


@triton.jit
def directions(
    table, hidden, dim, along, made, sums, dots, of_rates, chunks, rate, rates, limit,
    NORMALIZED: tl.constexpr, GRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """What `update` hands back to its gradient g and its rates, given the gradient L (`along`) of the weights after it.

    With r the rate times the matrix's own, d = <L, g>, n a norm and f its factor (1/n, or limit/n where that is below
    1): v = -r f L + r' g, and -rate f d for the matrix's rate. r' is r d / n^3 of the matrix itself with NORMALIZED,
    else the sum of all matrices' r d, times limit / n^3, where the clip binds.
    """
    matrix, document = tl.program_id(1), tl.program_id(2)
    matrices = tl.num_programs(1)
    here = document * matrices * chunks
    own_rate = rate * tl.load(rates + matrix)
    dot = _sum(dots + here + matrix * chunks, chunks, STEP, ACC)
    norm = tl.sqrt(_sum(sums + here, matrices * chunks, STEP, ACC))
    finite = norm < float("inf")
    if NORMALIZED:
        own = tl.sqrt(_sum(sums + here + matrix * chunks, chunks, STEP, ACC))
        factor = tl.where(own > 0, 1.0 / own, 1.0)
        back = tl.where(own > 0, own_rate * dot / (own * own * own), 0.0)
    else:
        clipped = (limit > 0) & (norm > limit)
        factor = tl.where(clipped, limit / norm, 1.0)
        back = 0.0 * norm
        if clipped:
            for other in range(0, matrices):
                theirs = _sum(dots + here + other * chunks, chunks, STEP, ACC)
                back += rate * tl.load(rates + other) * theirs
            back *= limit / (norm * norm * norm)
    if tl.program_id(0) == 0:
        tl.store(of_rates + document * matrices + matrix, tl.where(finite, -rate * factor * dot, 0.0))
    size = hidden.to(tl.int64) * dim
    grad, start = _grad_of(table, matrix, size, GRAD), _start(matrix, size)
    first = tl.program_id(0).to(tl.int64) * CHUNK
    for step in range(0, CHUNK, BLOCK):
        element = first + step + tl.arange(0, BLOCK)
        inside = element < size
        g = tl.load(grad + element, mask=inside, other=0.0).to(ACC)
        v = back * g - own_rate * factor * tl.load(along + start + element, mask=inside, other=0.0)
        tl.store(made + start + element, tl.where(finite, v, 0.0).to(GRAD), mask=inside)


@triton.jit
def undo(before, after, products, n, accepted, PRODUCT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Puts the weights of before in place of those after, for documents whose update was not accepted. Grid (chunks of
    a document's n numbers, documents)."""
    document = tl.program_id(1)
    if tl.load(accepted + document) == 0:
        start = document.to(tl.int64) * n
        first = tl.program_id(0).to(tl.int64) * CHUNK
        for step in range(0, CHUNK, BLOCK):
            element = first + step + tl.arange(0, BLOCK)
            inside = element < n
            w = tl.load(before + start + element, mask=inside, other=0.0)
            tl.store(after + start + element, w, mask=inside)
            tl.store(products + start + element, w.to(PRODUCT), mask=inside)

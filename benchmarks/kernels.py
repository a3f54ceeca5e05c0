"""Each kernel against its PyTorch twin, torch.compile of that twin and, for attention, flex_attention and SDPA.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json
    python benchmarks/kernels.py --tiles forward_rows --model 3b       # which tiles are fastest on this device
    python benchmarks/kernels.py --smoke

Shapes are those of a chunk of the model (1,024 tokens after a full window), bfloat16. `forward`, `backward` (forward
too) and `second` (the gradient of the gradient, with all that leads to it); the inner step, over the fast weights of
all suffix blocks, has no gradient. Before anything is timed, each kernel's result is checked against the twin in
float32. The roofline is the larger of the operations over the rate of a large product and the bytes (each input and
output once) over the rate of a large copy, both measured here. What runs out of memory or has no such derivative is
left out and named.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpu_shared import add_common, ceilings, config_of, device_of, facts, median, take_turns, write
from torch import Tensor

from ttt_docs.kernels.attention import triton_tiles as attention_launches
from ttt_docs.kernels.attention.definition import window_attention_reference
from ttt_docs.kernels.attention.triton import window_attention_triton
from ttt_docs.kernels.attention.triton_tiles import Tiles
from ttt_docs.kernels.backends import REFERENCE
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.triton import linear_cross_entropy_triton
from ttt_docs.kernels.dispatch import MAX_HEAD_DIM
from ttt_docs.kernels.heads.definition import Heads, HeadSplit, split_heads_reference
from ttt_docs.kernels.heads.triton import heads_triton
from ttt_docs.kernels.inner_step.definition import Rule, inner_step_reference
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights
from ttt_docs.kernels.inner_step.triton import inner_step_triton
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
from ttt_docs.kernels.swiglu.definition import swiglu_reference
from ttt_docs.kernels.swiglu.triton import swiglu_triton

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]

PASSES = ("forward", "backward", "second")


@dataclass(frozen=True)
class Case:
    name: str
    inputs: list[Tensor]
    kernel: Function
    twin: Function
    others: dict[str, Function]  # other implementations, by name
    operations: dict[str, float]  # by pass; what is not here has no such pass
    bytes: dict[str, float]


def attention_case(model: str, device: torch.device) -> Case:
    config, reading = config_of(model)
    chunk, window, dim = reading.chunk, reading.window, config.head_dim
    keys = window - 1 + chunk

    def heads(tokens: int, count: int) -> Tensor:
        return torch.randn(1, tokens, count, dim, device=device, dtype=torch.bfloat16).transpose(1, 2)

    inputs = [heads(chunk, config.heads), heads(keys, config.kv_heads), heads(keys, config.kv_heads)]
    product = 2.0 * chunk * window * config.heads * dim
    queries, cached = 2.0 * inputs[0].numel(), 4.0 * inputs[1].numel()
    return Case(
        f"window attention, head_dim {dim}",
        inputs,
        lambda q, k, v: window_attention_triton(q, k, v, window),
        lambda q, k, v: window_attention_reference(q, k, v, window),
        {
            "flex_attention": _flex(chunk, keys, window, device),
            "sdpa, masked": _masked_sdpa(chunk, keys, window, device),
        },
        # Products, nothing twice: S and PV; then S, dP, dQ, dK, dV; then G (two), H and those of method.md section 8.
        {"forward": 2 * product, "backward": 7 * product, "second": 19 * product},
        {"forward": 2 * queries + cached, "backward": 6 * queries + 3 * cached, "second": 12 * queries + 7 * cached},
    )


def _flex(chunk: int, keys: int, window: int, device: torch.device) -> Function:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if not _FLEX:
            offset = keys - chunk
            mask = create_block_mask(
                lambda b, h, i, j: (j <= i + offset) & (j > i + offset - window), None, None, chunk, keys, str(device)
            )
            compiled = torch.compile(flex_attention, dynamic=False)
            _FLEX.append(lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]))
        return _FLEX[0](q, k, v)

    _FLEX: list[Function] = []
    return run


def _masked_sdpa(chunk: int, keys: int, window: int, device: torch.device) -> Function:
    i, j = torch.arange(keys - chunk, keys, device=device)[:, None], torch.arange(keys, device=device)[None, :]
    visible = (j <= i) & (j > i - window)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=grouped)

    return run


def norm_case(model: str, device: torch.device) -> Case:
    config, reading = config_of(model)
    x = torch.randn(1, reading.chunk, config.dim, device=device, dtype=torch.bfloat16)
    size = 2.0 * x.numel()
    return Case(
        f"RMSNorm, {config.dim}",
        [x, torch.ones(config.dim, device=device, dtype=torch.bfloat16)],
        lambda x, w: rms_norm_triton(x, w, 1e-6),
        lambda x, w: rms_norm_reference(x, w, 1e-6),
        {"compiled": torch.compile(lambda x, w: rms_norm_reference(x, w, 1e-6))},
        {"forward": 0.0, "backward": 0.0, "second": 0.0},
        {"forward": 2 * size, "backward": 5 * size, "second": 10 * size},
    )


def residual_case(model: str, device: torch.device) -> Case:
    config, reading = config_of(model)
    x, delta = (torch.randn(1, reading.chunk, config.dim, device=device, dtype=torch.bfloat16) for _ in range(2))
    weights = [torch.ones(config.dim, device=device, dtype=torch.bfloat16) for _ in range(2)]
    size = 2.0 * x.numel()

    def twin(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return REFERENCE.residual_norm(*inputs, 1e-6)

    return Case(
        f"post-norm, residual and RMSNorm, {config.dim}",
        [x, delta, *weights],
        lambda *inputs: add_rms_norm_triton(*inputs, 1e-6),
        twin,
        {"compiled": torch.compile(twin)},
        {"forward": 0.0, "backward": 0.0, "second": 0.0},
        {"forward": 4 * size, "backward": 11 * size, "second": 21 * size},
    )


def heads_case(model: str, device: torch.device) -> Case:
    """Inputs are qkv and, where the model has QK norm, the weights of both norms."""
    config, reading = config_of(model)
    dtype = torch.bfloat16
    tokens, dim = reading.chunk, config.head_dim
    qkv = torch.randn(1, tokens, config.heads + 2 * config.kv_heads, dim, device=device, dtype=dtype)
    angles = torch.rand(tokens, dim // 2, device=device) * 6
    cos, sin = angles.cos(), angles.sin()
    turn = torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)
    split = HeadSplit(config.kv_heads, turn, eps=1e-6)
    norms = [torch.ones(dim, device=device, dtype=dtype) for _ in range(2)] if config.qk_norm else []

    def of(function: Callable[..., Heads]) -> Function:
        return lambda qkv, *norms: tuple(function(qkv, *(norms or (None, None)), split)[:3])

    size = 2.0 * qkv.numel()
    return Case(
        f"{'QK norm and RoPE' if config.qk_norm else 'RoPE'}, {qkv.shape[2]} heads of {dim}",
        [qkv, *norms],
        of(heads_triton),
        of(split_heads_reference),
        {"compiled": torch.compile(of(split_heads_reference))},
        {"forward": 0.0, "backward": 0.0, "second": 0.0},
        {"forward": 2 * size, "backward": 5 * size, "second": 10 * size},
    )


def step_case(model: str, device: torch.device) -> Case:
    """Inputs are the fast weights, then w13 and w2 of every suffix block's gradient."""
    config, _ = config_of(model)
    layout = FastLayout(config.suffix_blocks, config.prime_dim, config.dim)
    weights = torch.randn(1, layout.size, device=device)
    views = layout.views(torch.randn(1, layout.size, device=device).to(torch.bfloat16))
    grads = [g.clone() for block in views for g in block]

    def of(step: Callable[..., Any]) -> Function:
        def run(fast: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
            blocks = [PrimeWeights(*pair) for pair in zip(flat[0::2], flat[1::2], strict=True)]
            made = step(fast, blocks, Rule(), None, torch.bfloat16)
            return made.fast, made.products

        return run

    count = 3.0 * config.suffix_blocks * config.dim * config.prime_dim
    return Case(
        f"clip and step, {count / 1e6:.0f} million weights",
        [weights, *grads],
        of(inner_step_triton),
        of(inner_step_reference),
        {"compiled": torch.compile(of(inner_step_reference))},
        {"forward": 0.0},
        {"forward": 14 * count},  # a gradient read twice, weights read and written, a copy written
    )


def swiglu_case(model: str, device: torch.device) -> Case:
    config, reading = config_of(model)
    dim, hidden = config.dim, config.prime_dim

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device) / shape[-1] ** 0.5

    inputs = [randn(1, reading.chunk, dim) * dim**0.5, randn(1, 2 * hidden, dim), randn(1, dim, hidden)]
    product = 2.0 * reading.chunk * 3 * dim * hidden
    size = 2.0 * sum(x.numel() for x in inputs)
    return Case(
        f"SwiGLU, {dim} to {hidden}",
        [x.to(torch.bfloat16) for x in inputs],
        swiglu_triton,
        swiglu_reference,
        {"compiled": torch.compile(swiglu_reference)},
        {"forward": product, "backward": 3 * product, "second": 8 * product},
        {"forward": size, "backward": 3 * size, "second": 6 * size},
    )


def loss_case(model: str, device: torch.device) -> Case:
    config, reading = config_of(model)
    x = torch.randn(reading.chunk, config.dim, device=device, dtype=torch.bfloat16)
    head = (torch.randn(config.vocab_size, config.dim, device=device) * 0.02).to(torch.bfloat16)
    targets = torch.randint(0, config.vocab_size, (reading.chunk,), device=device)
    product = 2.0 * x.shape[0] * head.numel()
    size = 2.0 * head.numel()
    return Case(
        f"linear cross-entropy, {config.vocab_size:,}",
        [x, head],
        lambda x, head: linear_cross_entropy_triton(x, head, targets),
        lambda x, head: linear_cross_entropy_reference(x, head, targets),
        {"compiled": torch.compile(lambda x, head: linear_cross_entropy_reference(x, head, targets))},
        {"forward": product, "backward": 3 * product, "second": 9 * product},
        {"forward": size, "backward": 4 * size, "second": 9 * size},
    )


def job(function: Function, inputs: list[Tensor], which: str) -> Callable[[], object]:
    """What is timed: `forward`, `backward` (forward too), or `second` (everything up to it)."""
    if which == "forward":
        return lambda: _forward(function, inputs)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    if which == "backward":
        return lambda: torch.autograd.grad(_total(function(*leaves), 1), leaves)
    return lambda: _second(function, leaves)


@torch.no_grad()
def _forward(function: Function, inputs: list[Tensor]) -> Result:
    return function(*inputs)


def _total(result: Result, power: int) -> Tensor:
    results = result if isinstance(result, tuple) else (result,)
    return torch.stack([r.float().pow(power).sum() for r in results]).sum()


def _second(function: Function, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    grads = torch.autograd.grad(_total(function(*leaves), 2), leaves, create_graph=True)
    return torch.autograd.grad(_total(grads, 2), leaves)


def check(case: Case) -> float:
    """Largest relative error of value and gradients against the twin in float32. Raises if it is not small."""
    worst = 0.0
    kernel = _value_and_grads(case, case.kernel, [x.detach() for x in case.inputs])
    twin = _value_and_grads(case, case.twin, [x.detach().float() for x in case.inputs])
    for found, expected in zip(kernel, twin, strict=True):
        error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
        if not error < 2e-2:
            raise SystemExit(f"Error: {case.name} is off by {error:.1e}")
        worst = max(worst, error)
    return worst


def _value_and_grads(case: Case, function: Function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.requires_grad_("backward" in case.bytes) for x in inputs]
    result = function(*leaves)
    grads = torch.autograd.grad(_total(result, 1), leaves) if "backward" in case.bytes else ()
    return [*(r.detach() for r in (result if isinstance(result, tuple) else (result,))), *grads]


def cases(model: str, device: torch.device) -> Iterator[Case]:
    for make in (attention_case, heads_case, norm_case, residual_case, swiglu_case, loss_case, step_case):
        yield make(model, device)


def roofline(case: Case, which: str, rates: dict[str, float]) -> float:
    """Seconds that pass number `which` must at least take."""
    return max(case.operations[which] / rates["product_flops"], case.bytes[which] / rates["copy_bytes"])


def measure(case: Case, options: argparse.Namespace, rates: dict[str, float]) -> list[dict[str, Any]]:
    device, error = device_of(options), check(case)
    results = []
    for which in case.bytes:
        able: dict[str, Callable[[], object]] = {}
        implementations = {"kernel": case.kernel, "twin": case.twin} | ({} if options.smoke else case.others)
        for name, function in implementations.items():
            run = job(function, case.inputs, which)
            try:
                run()
            except Exception as problem:  # no memory, no second derivative, no such shape: reported as a dash
                print(f"  {case.name}, {which}: {name} cannot ({str(problem).splitlines()[0][:100]})", flush=True)
                if name == "kernel":
                    raise
                continue
            able[name] = run
        seconds = take_turns(able, options.rounds, device)
        floor = roofline(case, which, rates)
        results.append(
            {"kernel": case.name, "pass": which, "error": error, "seconds": seconds, "roofline_seconds": floor}
        )
        print(line(results[-1]), flush=True)
    return results


def line(result: dict[str, Any]) -> str:
    own, floor = median(result["seconds"]["kernel"]), result["roofline_seconds"]
    others = ", ".join(f"{n} {median(s) * 1e6:,.0f}" for n, s in result["seconds"].items() if n != "kernel") or "-"
    times = f"{own * 1e6:,.0f} | {floor * 1e6:,.0f} | {floor / own:.0%} | {others}"
    return f"| {result['kernel']} | {result['pass']} | {times} |"


def try_tiles(kernel: str, model: str, options: argparse.Namespace) -> None:
    """Times one attention kernel's candidate tiles on this device; the table to put into `attention.TILES`."""
    device = device_of(options)
    case = attention_case(model, device)
    which = kernel.split("_")[0]
    grid = itertools.product((32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3), (None, 128, 168))
    runs: dict[str, Callable[[], object]] = {}
    for rows, keys, warps, stages, registers in grid:
        tiles = Tiles(rows, keys, warps, stages, registers)

        def run(tiles: Tiles = tiles) -> object:
            attention_launches.TILES[kernel] = {MAX_HEAD_DIM: tiles}
            return job(case.kernel, case.inputs, which)()

        try:
            run()
        except Exception:  # too much shared memory or too few registers
            continue
        runs[str(tuple(tiles))] = run
    seconds = take_turns(runs, options.rounds, device)
    for name in sorted(seconds, key=lambda n: median(seconds[n]))[:10]:
        print(f"| {kernel} | {name} | {median(seconds[name]) * 1e6:,.0f} us |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, "1024", "760m,3b")
    parser.add_argument("--tiles", metavar="KERNEL", help="time candidate tiles of this attention kernel instead")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains this")
    options = parser.parse_args()
    device = device_of(options)
    models = ["tiny"] if options.smoke else options.models.split(",")
    if options.tiles:
        for model in models:
            try_tiles(options.tiles, model, options)
        return
    rates, results = ceilings(device, options.smoke), []
    for model in models:
        for case in cases(model, device):
            if options.only in case.name:
                results += [{"model": model} | result for result in measure(case, options, rates)]
                write(options.json, facts(device) | {"ceilings": rates, "results": results})
    print("\n| kernel | pass | us | roofline, us | of roofline | others, us |\n|---|---|---|---|---|---|")
    for result in results:
        print(line(result))


if __name__ == "__main__":
    main()

"""Compiles every Triton kernel ahead of time, without a GPU, in the shapes and configurations that ship.

    python benchmarks/compile_kernels.py                 # all of them, sm_80 and sm_90
    python benchmarks/compile_kernels.py --only RMSNorm --targets 90

The launches are recorded, not run: each public function is called on empty CPU tensors of a model's shapes, and what it
would have launched is compiled for the target. Prints registers, stack and shared memory per kernel; one that does not
compile, that spills registers to memory (a stack frame), or whose tensor cores wait after every instruction
(serialized), makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ttt_docs.kernels.attention import triton_tiles as attention_launches
from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.attention.triton import window_attention_triton
from ttt_docs.kernels.cross_entropy.triton import linear_cross_entropy_triton
from ttt_docs.kernels.heads.definition import HeadSplit
from ttt_docs.kernels.heads.triton import heads_triton
from ttt_docs.kernels.inner_step.definition import Rule
from ttt_docs.kernels.inner_step.layout import FastLayout
from ttt_docs.kernels.inner_step.triton import inner_step_triton, step_direction_triton, undo_step_triton
from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
from ttt_docs.kernels.swiglu.triton import swiglu_triton

#: NVIDIA's tools, as they come with Triton.
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "u8",
}


@dataclass(frozen=True)
class Launch:
    """One kernel as it would be launched: everything that the compiler specializes on."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, int], ...]  # num_warps, num_stages, maxnreg


@dataclass(frozen=True)
class Report:
    case: str
    kernel: str
    target: str
    warps: int
    stages: int
    registers: int
    stack: int  # bytes per thread: spilled registers
    shared: int  # bytes per program
    serialized: bool  # ptxas lets the tensor cores wait after every instruction


def _launch(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, int]) -> Launch:
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        if isinstance(value, Tensor):
            signature.append((name, "*" + TYPES[value.dtype]))
            divisible.append(index)
        elif isinstance(value, int):
            signature.append((name, "i32" if abs(value) < 2**31 else "i64"))
            if value % 16 == 0:
                divisible.append(index)
        else:
            signature.append((name, "fp32"))
    return Launch(kernel, tuple(signature), tuple(constants), tuple(divisible), tuple(options.items()))


@contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Launches inside the `with`, as on a device of that capability, are collected instead of run."""
    launches: list[Launch] = []
    genuine, genuine_generation = JITFunction.run, attention_launches.generation

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        arguments = dict(zip((p.name for p in self.params), args, strict=False)) | kwargs
        launch = _launch(self, arguments, {"num_warps": 4, "num_stages": 3} | options)
        if launch not in launches:
            launches.append(launch)

    JITFunction.run = record
    attention_launches.generation = lambda device: capability // 10
    try:
        yield launches
    finally:
        JITFunction.run, attention_launches.generation = genuine, genuine_generation


def compiled(case: str, launch: Launch, capability: int) -> tuple[Report, Any]:
    """What the compiler says of a launch, and what it made."""
    source = ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    options = dict(launch.options)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _resources(binary.asm["cubin"])
    report = Report(
        case, launch.kernel.__name__, f"sm_{capability}", options["num_warps"], options["num_stages"],
        usage["REG"], usage["STACK"], binary.metadata.shared, _serialized(binary.asm["ptx"], capability),
    )  # fmt: skip
    return report, binary


def _resources(cubin: bytes) -> dict[str, int]:
    lines = printed(BIN / "cuobjdump", cubin, "--dump-resource-usage").splitlines()
    fields = next(line for line in lines if "REG:" in line).split()
    return {name: int(value) for name, value in (field.split(":", 1) for field in fields) if value.isdigit()}


def _serialized(ptx: str, capability: int) -> bool:
    if "wgmma" not in ptx:
        return False
    with tempfile.NamedTemporaryFile() as made:
        options = "-v", f"--gpu-name=sm_{capability}a", "-o", made.name
        return "serialized" in printed(get_ptxas(capability).path, ptx.encode(), *options)


def printed(tool: str | Path, content: bytes, *options: str) -> str:
    """What one of NVIDIA's tools says of a file with that content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def _twice(result: Tensor, inputs: list[Tensor]) -> None:
    """The launches of the gradient and of the gradient's gradient."""
    grads = torch.autograd.grad(result.sum(), inputs, create_graph=True)
    torch.autograd.grad(sum(g.sum() for g in grads), inputs)


def attention(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, chunk: int = 1024) -> None:
    q = _leaf(1, chunk, heads + 2 * kv_heads, head_dim, dtype=dtype).transpose(1, 2)[:, :heads]
    k, v = (_leaf(1, 2 * chunk, kv_heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(2))
    _twice(window_attention_triton(q, k, v, chunk), [q, k, v])


def attention_with_sinks(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, chunk: int = 1024) -> None:
    q, sink_q = (_leaf(1, chunk, heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(2))
    k, v = (torch.empty(1, kv_heads, 3 * chunk, head_dim, dtype=dtype) for _ in range(2))
    new_k, new_v = (_leaf(1, chunk, kv_heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(2))
    sink_k, sink_v = (torch.empty(1, kv_heads, 4, head_dim, dtype=dtype) for _ in range(2))
    for hidden in (None, torch.empty(chunk, 4, dtype=torch.bool)):
        sinks = Sinks(sink_q, sink_k, sink_v, hidden)
        out = window_attention_triton(q, k, v, 2 * chunk, sinks, (new_k, new_v))
        torch.autograd.grad(out.sum(), [q, new_k, new_v, sink_q])


def rms_norm(dim: int, dtype: torch.dtype) -> None:
    x, delta, weight, post = (_leaf(*shape, dtype=dtype) for shape in ((1, 1024, dim), (1, 1024, dim), (dim,), (dim,)))
    _twice(rms_norm_triton(x, weight, 1e-6), [x, weight])
    total, y = add_rms_norm_triton(x, delta, post, weight, 1e-6)
    _twice(total + y, [x, delta, post, weight])
    rms_norm_triton(x.detach(), weight.detach().requires_grad_(False), 1e-6)


def heads(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, norm: bool = True, sinks: bool = False) -> None:
    qkv = _leaf(1, 1024, heads + 2 * kv_heads, head_dim, dtype=dtype)
    norms = [_leaf(head_dim, dtype=dtype) for _ in range(2)] if norm else []
    rotation = torch.empty(1024, head_dim, dtype=dtype), torch.empty(1024, head_dim, dtype=dtype)
    slots = torch.empty(2, 1, kv_heads, 4096, head_dim, dtype=dtype)[:, :, :, 1024:2048]
    for sink_rotation in (None, rotation) if sinks else (None,):
        split = HeadSplit(kv_heads, rotation, sinks, sink_rotation, None, 1e-6)
        made = heads_triton(qkv, *(norms or (None, None)), split)
        _twice(sum(x.square().sum() for x in made if x is not None), [qkv, *norms])
        with torch.no_grad():
            heads_triton(qkv, *(norms or (None, None)), split._replace(slots=(slots[0], slots[1])))


def swiglu(dim: int, hidden: int, dtype: torch.dtype) -> None:
    inputs = [
        _leaf(1, 64, dim, dtype=dtype),
        _leaf(1, 2 * hidden, dim, dtype=dtype),
        _leaf(1, dim, hidden, dtype=dtype),
    ]
    _twice(swiglu_triton(*inputs), inputs)


def cross_entropy(dim: int, vocab: int, dtype: torch.dtype) -> None:
    x, head, targets = _leaf(64, dim, dtype=dtype), _leaf(vocab, dim, dtype=dtype), torch.zeros(64, dtype=torch.int64)
    _twice(linear_cross_entropy_triton(x, head, targets, 0), [x, head])
    linear_cross_entropy_triton(x, head.detach(), targets)
    linear_cross_entropy_triton(x.detach(), head.detach(), targets)


def inner_step(dim: int, hidden: int, dtype: torch.dtype) -> None:
    layout = FastLayout(1, hidden, dim)
    fast, grads = torch.empty(1, layout.size), layout.views(torch.empty(1, layout.size, dtype=dtype))
    for rule in (Rule("sgd"), Rule("normalized"), Rule("balanced")):
        undo_step_triton(inner_step_triton(fast, grads, rule, None, dtype), torch.ones(1, dtype=torch.bool))
        if rule.name != "balanced":
            step_direction_triton(fast, grads, rule, torch.ones(3))


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Callable[[], None]] = {
    "attention, head_dim 16": lambda: attention(4, 2, 16, BF16),
    "attention, head_dim 32": lambda: attention(4, 2, 32, BF16),
    "attention, head_dim 64 (125m, 1.3b)": lambda: attention(12, 12, 64, BF16),
    "attention, head_dim 64, fp16": lambda: attention(12, 12, 64, FP16),
    "attention, head_dim 80 (3b)": lambda: attention(32, 32, 80, BF16),
    "attention, head_dim 96 (760m)": lambda: attention(16, 16, 96, BF16),
    "attention, head_dim 128": lambda: attention(16, 8, 128, BF16),
    "attention, head_dim 256": lambda: attention(8, 4, 256, BF16),
    "attention, head_dim 64, fp32": lambda: attention(12, 12, 64, FP32),
    "attention, head_dim 80, fp32": lambda: attention(16, 16, 80, FP32),
    "attention and sinks, head_dim 64 (smollm2-135m)": lambda: attention_with_sinks(9, 3, 64, BF16),
    "RMSNorm, dim 768 (125m)": lambda: rms_norm(768, BF16),
    "RMSNorm, dim 1536 (760m)": lambda: rms_norm(1536, BF16),
    "RMSNorm, dim 2560 (3b)": lambda: rms_norm(2560, BF16),
    "RMSNorm, dim 576 (smollm2-135m)": lambda: rms_norm(576, BF16),
    "RMSNorm, dim 8192": lambda: rms_norm(8192, BF16),
    "RMSNorm, dim 2560, fp32": lambda: rms_norm(2560, FP32),
    "RMSNorm, dim 8192, fp32": lambda: rms_norm(8192, FP32),
    "RoPE and QK norm, head_dim 80 (3b)": lambda: heads(32, 32, 80, BF16),
    "RoPE and QK norm, head_dim 96 (760m)": lambda: heads(16, 16, 96, BF16),
    "RoPE and QK norm, head_dim 256, fp32": lambda: heads(8, 4, 256, FP32, sinks=True),
    "RoPE and sinks, head_dim 64 (smollm2-135m)": lambda: heads(9, 3, 64, BF16, norm=False, sinks=True),
    "SwiGLU (760m)": lambda: swiglu(1536, 3328, BF16),
    "SwiGLU, fp32": lambda: swiglu(1536, 3328, FP32),
    "cross-entropy (vocabulary 128,256)": lambda: cross_entropy(64, 128_256, BF16),
    "cross-entropy (vocabulary 49,152), fp32": lambda: cross_entropy(64, 49_152, FP32),
    "inner step, bf16 gradients": lambda: inner_step(96, 128, BF16),
    "inner step, fp32 gradients": lambda: inner_step(96, 128, FP32),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="80,90", help="compute capabilities (default 80,90)")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases whose name contains this; repeatable")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    reports, failures = [], 0
    print("| case | kernel | target | warps | stages | registers | stack | shared | serialized |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case, launch_all in CASES.items():
        if options.only and not any(text in case for text in options.only):
            continue
        for capability in map(int, options.targets.split(",")):
            with recorded(capability) as launches:
                launch_all()
            for launch in launches:
                try:
                    report, _ = compiled(case, launch, capability)
                except Exception as error:
                    print(f"| {case} | {launch.kernel.__name__} | sm_{capability} | does not compile: {error} |")
                    failures += 1
                    continue
                reports.append(report)
                failures += report.stack > 0 or report.serialized
                print("| " + " | ".join(str(value) for value in asdict(report).values()) + " |", flush=True)
    if options.json is not None:
        figures = {"triton": triton.__version__, "kernels": [asdict(report) for report in reports]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"{len(reports)} kernels compiled, {failures} that spill, are serialized or do not compile")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

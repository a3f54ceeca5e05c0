"""What the GPU benchmarks share: models with random weights, fair timing, measured ceilings, the baseline."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import circumstances
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.weights.loading import build_decoder

TINY = ModelConfig(
    name="tiny", vocab_size=200, blocks=2, dim=32, heads=2, kv_heads=1, head_dim=16, mlp_dim=32, suffix_blocks=1,
    post_norm=True, qk_norm=True,
)  # fmt: skip
#: MLP width of the plain transformers with as many parameters as the published TTT models (docs/method.md section 4).
PLAIN_MLP = {"125m": 2048, "350m": 2816, "760m": 4096, "1.3b": 5376, "3b": 6912, "tiny": 48}


def add_common(parser: argparse.ArgumentParser, lengths: str, models: str) -> None:
    parser.add_argument("--models", default=models, help=f"names (default {models})")
    parser.add_argument("--lengths", default=lengths, help=f"tokens (default {lengths})")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, the systems taking turns (default 5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, on any device: only that everything runs")


def names_and_lengths(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    if options.smoke:
        return ["tiny"], [64]
    return options.models.split(","), [int(n) for n in options.lengths.split(",")]


def device_of(options: argparse.Namespace) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if options.smoke:
        return torch.device("cpu")
    raise SystemExit("Error: these benchmarks need a CUDA device; --smoke runs a tiny model without one")


def kernels_of(device: torch.device) -> Kernels:
    """What the program uses on a GPU; without one (`--smoke`) the definitions, or Triton's interpreter if it is on."""
    if device.type == "cuda" or os.environ.get("TTT_DOCS_KERNELS") == "triton":
        return kernels_for(device)
    return REFERENCE


def config_of(name: str) -> tuple[ModelConfig, ReadingConfig]:
    """The published sizes as published, the default model as its retrofit reads."""
    if name == "tiny":
        return TINY, ReadingConfig(chunk=16, window=32)
    config = CONFIGS[name]
    if config.suffix_blocks:
        return config, ReadingConfig(chunk=1024, window=8192, guard=None)
    config = config.model_copy(update={"suffix_blocks": 8, "prime_norm": False, "sinks": 4})
    return config, ReadingConfig(chunk=1024, window=2048, sinks=4, inner_rule="normalized", inner_lr=0.3)


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    """A frozen decoder with the paper's initial weights; prime MLPs in float32."""
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    generator = torch.Generator(device).manual_seed(0)
    state = {
        name: torch.empty(w.shape, device=device).normal_(std=0.02, generator=generator)
        if w.dim() > 1
        else torch.ones(w.shape, device=device)
        for name, w in shapes.items()
    }
    return build_decoder(config, state, device, dtype)


def take_turns(systems: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each system in each round, after one round that does not count. By events on the device."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, run in systems.items():
            took = _timed(run, device)
            if number:
                seconds[name].append(took)
    return seconds


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def median(values: list[float]) -> float:
    return statistics.median(values)


def ceilings(device: torch.device, smoke: bool) -> dict[str, float]:
    """Rates of this device: a large bfloat16 product of random matrices, and a large copy (bytes read and written)."""
    size, count = (256, 1 << 16) if smoke else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(count, device=device, dtype=torch.uint8).random_()
    y = torch.empty_like(x)
    times = take_turns({"product": lambda: a @ b, "copy": lambda: y.copy_(x)}, 5, device)
    return {
        "product_flops": 2 * size**3 / median(times["product"]),
        "copy_bytes": 2 * count / median(times["copy"]),
    }


# --- full attention done well ---------------------------------------------------------------------


@contextmanager
def _only(backend: SDPBackend):  # type: ignore[no-untyped-def]
    with sdpa_kernel(backend):
        yield


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def full_attention_backends(device: torch.device) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Causal attention over a whole document, by name of who computes it; q, k, v [batch, heads, tokens, head_dim]."""

    def by(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with _only(backend):
                return _sdpa(q, k, v)

        return run

    if device.type != "cuda":
        return {"sdpa math": by(SDPBackend.MATH)}
    found = {"sdpa flash": by(SDPBackend.FLASH_ATTENTION), "sdpa cudnn": by(SDPBackend.CUDNN_ATTENTION)}
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return found

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)

    return found | {"flash-attn": flash}


def fastest_full_attention(
    config: ModelConfig, length: int, device: torch.device, dtype: torch.dtype, batch: int = 1, backward: bool = False
) -> tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The backend that computes this model's attention fastest on this device, with its backward pass if asked for."""
    q = torch.randn(batch, length, config.heads, config.head_dim, device=device, dtype=dtype).transpose(1, 2)
    k, v = (
        torch.randn(batch, length, config.kv_heads, config.head_dim, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(2)
    )
    leaves = [x.requires_grad_(backward) for x in (q, k, v)]

    def job(run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], object]:
        if not backward:
            return lambda: run(*leaves)
        return lambda: torch.autograd.grad(run(*leaves).sum(), leaves)

    able = {}
    for name, run in full_attention_backends(device).items():
        try:
            job(run)()
        except RuntimeError as error:
            print(f"  {name} cannot: {str(error).splitlines()[0]}")
            continue
        able[name] = run
    times = take_turns({name: job(run) for name, run in able.items()}, 3, device)
    best = min(able, key=lambda name: median(times[name]))
    return best, able[best]


def with_full_attention(kernels: Kernels, run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Kernels:
    """`kernels` with attention over everything at once: for one call over a whole document, nothing cached."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: object, sinks: object, newest: tuple[Tensor, Tensor]) -> Tensor:
        assert window is None and sinks is None and q.shape[2] == k.shape[2]
        return run(q, *newest)

    return kernels.replace(window_attention=attend)


# --- records --------------------------------------------------------------------------------------


def facts(device: torch.device) -> dict[str, Any]:
    """Under what circumstances the figures were measured. Nothing that names a machine or a folder."""
    about = circumstances(("torch", "triton", "flash-attn")) | {"device": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return about


def write(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

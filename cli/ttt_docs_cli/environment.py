"""`ttt-docs env`: what the program runs on, for bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import click

from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import say_json, table

PACKAGES = [
    "torch",
    "triton",
    "flash-attn",
    "numpy",
    "safetensors",
    "tokenizers",
    "transformers",
    "huggingface-hub",
    "gguf",
    "pypdf",
]


@click.command(epilog="\b\nExample:\n  ttt-docs env\n  ttt-docs env --json")
@json_option
def env(as_json: bool) -> None:
    """Show versions, devices, number formats, kernels and the cache folder."""
    facts = _environment()
    if as_json:
        say_json(facts)
        return
    cpu, kernels, cache = facts["cpu"], facts["kernels"], facts["cache"]
    able = [name for name in ("bf16", "amx") if cpu[name]]
    table(
        [
            *((name, version or "not installed") for name, version in facts["versions"].items()),
            ("platform", facts["platform"]),
            ("devices", f"{', '.join(facts['devices'])}; {facts['device']} unless --device says otherwise"),
            ("dtype", ", ".join(f"{device}: {dtype}" for device, dtype in facts["dtype"].items())),
            ("cpu", f"{cpu['capability']}{' with ' + ', '.join(able) if able else ''}"),
            ("threads", facts["threads"]),
            ("TTT_DOCS_KERNELS", kernels["TTT_DOCS_KERNELS"] or "not set (auto)"),
            ("kernels", ", ".join(f"{device}: {name}" for device, name in kernels["chosen"].items())),
            ("native kernels", kernels["native"]),
            ("cache", f"{cache['folder']}, with {cache['memories']} memories of {size(cache['bytes'])}"),
        ]
    )


def _environment() -> dict[str, Any]:
    import torch

    from ttt_docs._version import __version__
    from ttt_docs.errors import UsageError
    from ttt_docs.io import cache_folder
    from ttt_docs.kernels.dispatch import kernel_choice, kernels_for
    from ttt_docs.kernels.native.build import native_library
    from ttt_docs.weights.loading import best_dtype
    from ttt_docs_cli.opening import memories_folder

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def able(check: str) -> bool:
        """What torch says about this CPU; a torch without that question counts as no."""
        return bool(getattr(torch.cpu, check, lambda: False)())

    def chosen(device: str) -> str:
        """What would run on `device`, or why what is forced cannot."""
        try:
            return kernels_for(torch.device(device)).name
        except UsageError as error:
            return f"none ({error})"

    kernel_choice()  # a value that does not exist is an error of its own
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    sizes = [path.stat().st_size for path in memories_folder().glob("*.ttt")]
    return {
        "versions": {"ttt-docs": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "device": "cpu",
        "devices": devices,
        "dtype": {device: str(best_dtype(torch.device(device))).removeprefix("torch.") for device in devices},
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "bf16": able("_is_avx512_bf16_supported"),
            "amx": able("_is_amx_tile_supported"),
        },
        "threads": torch.get_num_threads(),
        "kernels": {
            "TTT_DOCS_KERNELS": os.environ.get("TTT_DOCS_KERNELS"),
            "native": native_library().reason,
            "chosen": {device: chosen(device) for device in devices},
        },
        "cache": {"folder": str(cache_folder()), "memories": len(sizes), "bytes": sum(sizes)},
    }

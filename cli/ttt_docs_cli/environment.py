"""`ttt-docs env`: what the program runs on, for bug reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import click

from ttt_docs_cli.options import examples
from ttt_docs_cli.output import Result, details, table, with_json

PACKAGES = "torch triton flash-attn numpy safetensors tokenizers transformers huggingface-hub gguf pypdf"


@click.command(epilog=examples("ttt-docs env", "ttt-docs env --json"))
@with_json
def env() -> Result:
    """Show versions, devices, number formats, kernels and the cache folder."""
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
    facts = {
        "versions": {"ttt-docs": __version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES.split()},
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
    return Result(facts, lambda: table(details(facts)))

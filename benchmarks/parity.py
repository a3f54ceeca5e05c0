"""Reads reference files and compares every token's loss and every gradient (docs/method.md section 7).

    python benchmarks/parity.py

One JSON line per file: name, mode, max_abs_nll_err (nats), loss, loss_ref, grad_max_rel_err (largest over parameters of
||g - g_ref|| / ||g_ref||) and the parameter it belongs to. Exit code 1 if a file is off by more than --tolerance or
--grad-tolerance. Losses go through the reading path that users run, gradients through the outer loop that training
runs, both in float32, without the guard.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from reference import Reference, load_reference

from ttt_docs.errors import TTTDocsError
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.outer_loop import outer_loss
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.loading import build_decoder

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"


def gradient_errors(reference: Reference, model: Decoder) -> dict[str, float]:
    """||g - g_ref|| / ||g_ref|| of every parameter, for the gradient of the mean loss through the inner updates."""
    model.requires_grad_(True)
    tokens, reading = reference.tokens.long().unsqueeze(0), reference.reading
    if reading.learn:
        result = outer_loss(model, tokens, reading)
    else:  # without updates the chunk is only a way of grouping losses
        reading = reading.model_copy(update={"chunk": tokens.shape[1] - 1})
        result = outer_loss(model, tokens, reading, mode="none")
    result.loss.backward()
    errors = {}
    for name, parameter in model.named_parameters():
        expected = reference.grads[name]
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        errors[name] = float((got - expected).norm() / expected.norm())
    return errors


def read_reference(path: str) -> dict[str, object]:
    reference = load_reference(path)
    model = build_decoder(reference.config, reference.state, torch.device("cpu"), torch.float32)
    state = ReadingState(model, reference.reading)
    tokens = torch.as_tensor(reference.tokens).long().unsqueeze(0)
    losses = [result.nll[0] for result in state.read_whole(tokens)]
    if tokens.shape[1] - state.position > 1:
        losses.append(state.score(tokens[:, state.position :])[0])
    errors = gradient_errors(reference, model)
    worst = max(errors, key=lambda name: errors[name])
    nll, expected = torch.cat(losses), torch.as_tensor(reference.token_nll)
    return {
        "name": reference.settings["name"],
        "mode": reference.settings["train_mode"],
        "max_abs_nll_err": float((nll - expected).abs().max()),
        "loss": float(nll.double().mean()),
        "loss_ref": float(reference.loss),
        "grad_max_rel_err": errors[worst],
        "grad_worst": worst,
        "kernels": state.kernels.name,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE.npz", default=sorted(REFERENCE.glob("*.npz")))
    parser.add_argument("--tolerance", type=float, default=5e-6, help="nats (default 5e-6)")
    parser.add_argument("--grad-tolerance", type=float, default=2e-5, help="relative (default 2e-5)")
    options = parser.parse_args()
    failed = False
    for path in options.files:
        try:
            line = read_reference(path)
        except (TTTDocsError, OSError) as error:
            print(f"Error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        print(json.dumps(line), flush=True)
        failed |= not line["max_abs_nll_err"] <= options.tolerance  # type: ignore[operator]
        failed |= not line["grad_max_rel_err"] <= options.grad_tolerance  # type: ignore[operator]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

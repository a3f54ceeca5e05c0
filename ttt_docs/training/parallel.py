"""The processes of a run, and how they share a model in training: float32 masters, gradients, FSDP2.

Every trained parameter has a float32 master, which AdamW updates. Products run on a copy in the compute dtype. Prime
MLPs stay float32, as fast weights do. With several processes, `data` keeps everything in each and averages gradients.
`sharded` (FSDP2) divides masters, gradients and AdamW's state, and gathers the weights for each step.

Gradients are averaged by one explicit all-reduce. DDP's hooks would fire on every backward pass, and the inner loop's
gradients are backward passes inside the forward pass. For the same reason FSDP2 wraps the outer loss as a whole: the
inner loop is then a part of one forward pass, and gradients are reduced when the backward pass of the loss has ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ttt_docs.errors import UsageError
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.training.recipe import OptimizerRecipe, Recipe
from ttt_docs.ttt.outer_loop import OuterLoss, outer_loss
from ttt_docs.ttt.outer_scan import names_above
from ttt_docs.weights.loading import build_decoder
from ttt_docs.weights.parameters import State

#: The learned inner learning rates' name beside the model's parameters.
INNER_LR = "inner_lr"


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over the processes."""
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, in every one of them the same bits."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, connected (NCCL between GPUs, gloo between CPUs); or this one alone.

    Raises:
        UsageError: a device that is not there.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UsageError(f"compute.device={device}: no GPU is visible; use cpu")
    where = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    if count == 1:
        yield Processes(0, 1, 0, where)
        return
    # One process may tokenize or validate while the others wait.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(rank, count, local_rank, where)
        dist.barrier()  # the first process writes files at the end: connections are taken down by all at the same time
    finally:
        dist.destroy_process_group()


class Objective(nn.Module):
    """The outer loss as a module, which is what FSDP2 can wrap."""

    def __init__(self, model: Decoder, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, tokens: Tensor, lr_scale: float, inner_lr: Tensor | None) -> OuterLoss:
        gather_prime_mlps(self.model)
        recipe = self.recipe
        return outer_loss(
            self.model,
            tokens,
            recipe.reading,
            mode=recipe.mode,
            lr_scale=lr_scale,
            inner_lr=inner_lr,
            recompute=recipe.compute.recompute,
        )


@dataclass
class TrainedWeights:
    """A model in training."""

    objective: Objective
    masters: dict[str, Tensor]  # float32, by parameter name; DTensors where sharded
    copies: dict[str, Tensor]  # the model's own, where they are not the masters themselves
    optimizer: torch.optim.AdamW  # of the masters
    sharded: bool

    @property
    def model(self) -> Decoder:
        return self.objective.model

    @property
    def inner_lr(self) -> Tensor | None:
        """What the inner learning rate is multiplied by, [suffix blocks] or [suffix blocks, 3] for their matrices;
        None: it is not trained."""
        return self.masters.get(INNER_LR)

    @property
    def grads(self) -> list[Tensor]:
        """The masters' gradients, where there are any."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def collect_gradients(self) -> None:
        """Adds the gradients of the compute copies to the masters', in float32."""
        for name, copy in self.copies.items():
            if copy.grad is not None:
                master = self.masters[name]
                grad = copy.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                copy.grad = None

    def average_gradients(self, here: Processes, pieces: int) -> None:
        """From sums over this process's `pieces` of a batch to the mean over all processes'."""
        for grad in self.grads:
            grad.div_(pieces)
        whole = [grad for grad in self.grads if not isinstance(grad, DTensor)]  # FSDP2 has averaged the others
        if here.count > 1 and whole:
            flat = here.mean(torch.cat([grad.flatten() for grad in whole]))
            for grad, mean in zip(whole, flat.split([grad.numel() for grad in whole]), strict=True):
                grad.copy_(mean.view_as(grad))

    def gradient_norm(self, here: Processes) -> Tensor:
        """The global norm over all trained parameters, float64."""
        whole = [grad for grad in self.grads if not isinstance(grad, DTensor)]
        parts = [grad.to_local() for grad in self.grads if isinstance(grad, DTensor)]
        of_parts = here.sum(_squares(parts, here.device)) if self.sharded else 0
        return (_squares(whole, here.device) + of_parts).sqrt()

    def update(self, lr: float) -> None:
        """A step of AdamW at the learning rate `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copies the masters to the model, after an update."""
        for name, copy in self.copies.items():
            copy.copy_(self.masters[name])

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter whole, float32, on the CPU. All processes must go through it together."""
        for name, master in self.masters.items():
            full = master.full_tensor() if isinstance(master, DTensor) else master
            yield name, full.detach().cpu()


def trained_names(recipe: Recipe, config: ModelConfig, names: Iterable[str]) -> list[str]:
    """The names of what a recipe trains. `all`: every parameter. `adapter`: prime MLPs and norms. `suffix`: of these
    only what lies above the attention of the first suffix block, so that no gradient goes through the blocks below. An
    attention that is off is never trained."""
    chosen = [name for name in names if recipe.trains == "all" or ".prime_mlp." in name or "norm." in name]
    if recipe.trains == "suffix":
        chosen = names_above(config, chosen)
    return [name for name in chosen if recipe.model.attention or ".attention." not in name]


def prepare(
    recipe: Recipe,
    config: ModelConfig,
    state: State,
    dtype: torch.dtype,
    here: Processes,
    inner_lr_factors: tuple[float, ...] = (),
) -> TrainedWeights:
    """The model on its device, ready to train. `inner_lr_factors` are learned inner rates of an earlier run."""
    sharded = recipe.compute.parallel == "sharded" and here.count > 1
    model = build_decoder(config, state, here.device, torch.float32 if sharded else dtype)
    model.attends = recipe.model.attention
    trained = trained_names(recipe, config, state)
    for name in trained:
        # The state may map a checkpoint's file or share tensors: what is trained gets memory of its own.
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, leaf, nn.Parameter(getattr(module, leaf).detach().clone()))
    objective = Objective(model, recipe)
    if sharded:
        _shard(objective, dtype, here)
    masters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in trained}
    copies = {name: p for name, p in masters.items() if p.dtype != torch.float32}
    for name in copies:
        masters[name] = state[name].detach().to(here.device, torch.float32, copy=True)
    if recipe.learned_inner_lr:
        shape = (config.suffix_blocks, 3) if recipe.learned_inner_lr == "matrix" else (config.suffix_blocks,)
        rates = torch.ones(shape, device=here.device)
        if inner_lr_factors:
            # A rate of a block is where each of its matrices starts; a block starts from the mean of its matrices.
            earlier = torch.tensor(inner_lr_factors, device=here.device).view(config.suffix_blocks, -1)
            rates *= earlier if rates.dim() == 2 else earlier.mean(dim=1)
        masters[INNER_LR] = rates.requires_grad_()
    return TrainedWeights(objective, masters, copies, _optimizer(recipe.optimizer, masters), sharded)


def _optimizer(chosen: OptimizerRecipe, masters: dict[str, Tensor]) -> torch.optim.AdamW:
    """AdamW: matrices decay, norms and inner learning rates do not.

    The learning rate of a group is its `factor` times the schedule's. The state is there from the start, zeros, for
    checkpoints to be loaded into.
    """
    rates = [masters[INNER_LR]] if INNER_LR in masters else []
    others = [master for name, master in masters.items() if name != INNER_LR]
    matrices, vectors = [m for m in others if m.dim() > 1], [m for m in others if m.dim() <= 1]
    faster = (chosen.rates_lr or chosen.lr) / chosen.lr
    groups = [
        {"params": params, "weight_decay": decay, "factor": factor}
        for params, decay, factor in ((matrices, chosen.weight_decay, 1), (vectors, 0.0, 1), (rates, 0.0, faster))
        if params
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.lr, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps)
    for master in masters.values():
        moments = {key: torch.zeros_like(master, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[master] = {"step": torch.zeros(()), **moments}
    return optimizer


def gather_prime_mlps(model: Decoder) -> None:
    """With FSDP2, brings the prime MLPs together: they are a group of their own, whose dtype is float32."""
    from torch.distributed.fsdp import FSDPModule

    for index in model.config.suffix:
        prime = model.block(index).prime_mlp
        if isinstance(prime, FSDPModule):
            prime.unshard()


def _shard(objective: Objective, dtype: torch.dtype, here: Processes) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(here.device.type, (here.count,))
    for index in objective.model.config.suffix:
        fully_shard(objective.model.block(index).prime_mlp, mesh=mesh)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(objective, mesh=mesh, mp_policy=policy)


def _squares(grads: list[Tensor], device: torch.device) -> Tensor:
    if not grads:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(grads)).double().square().sum()

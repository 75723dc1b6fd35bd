"""What the ranks of test_ranks.py run: the job, and parts of it."""

from dataclasses import replace
from importlib import import_module
from unittest.mock import patch

import torch
from narrow import narrow_discriminator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from spcl_fast import SupConLoss
from spcl_fast.segmentation.commands import method_table
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.finetune.step import FinetuneTrainer
from spcl_fast.segmentation.networks import UNetEncoder
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.dataset import split_scans, training_slices
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.sync_batch_norm import synchronised

CPU = torch.device("cpu")


def train(rank, world, config):
    """Run a stage; the ranks of the group share it."""
    stage = pretrain if isinstance(config, PretrainConfig) else finetune
    return stage(config)


def resume(rank, world, config):
    """Continue a run."""
    return pretrain(config, resume=True)


def grid(rank, world, command, config, preset):
    """Run the comparison or the audit, without a report; return the path of its table."""
    module = import_module(f"spcl_fast.segmentation.commands.{command}")
    writer = method_table if command == "reproduce" else module
    with (
        patch.object(module, "preset_path", lambda name: preset),
        patch.object(writer, "write_report"),
    ):
        return getattr(module, command)(config)


@narrow_discriminator()
def steps(rank, world, config, count):
    """Take steps in float64; return their losses and the tensors of the state."""
    torch.set_default_dtype(torch.float64)
    try:
        slices = training_slices(config.data, split_scans(config.data).train)
        slices = replace(slices, images=slices.images.double())
        if isinstance(config, PretrainConfig):
            trainer = PretrainTrainer(config, slices, CPU)
            losses = [trainer.train_step().loss for _ in range(count)]
        else:
            labelled = slices.select([0, 1])
            trainer = FinetuneTrainer(config, slices, CPU)
            draws = (labelled.images, labelled.masks)
            losses = [trainer.train_step(*draws)["loss"] for _ in range(count)]
        return [float(x) for x in losses], tensors(trainer.state())
    finally:
        torch.set_default_dtype(torch.float32)


def tensors(state):
    """Return copies of the floating-point tensors of a nested state, by path."""
    found = {}
    for name, value in (state or {}).items():
        if isinstance(value, dict):
            found |= {f"{name}/{inner}": x for inner, x in tensors(value).items()}
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            found[str(name)] = value.clone()
    return found


def sharded(rank, world, x, labels):
    """Train an encoder two steps, sharded by FSDP2 on several ranks; return losses and weights."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    encoder = UNetEncoder(1, 16, "group").double()
    ranks = Ranks.current()
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for block in encoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(encoder, mesh=mesh)
    loss = SupConLoss(tau=0.1, group=ranks.group)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    rows, losses = ranks.rows(len(x)), []
    for _ in range(2):
        z = nn.functional.normalize(encoder(rows.take(x))[-1].mean((2, 3)), dim=1)
        out = loss(z, rows.take(labels))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    weights = encoder.parameters()
    return losses, [(p.full_tensor() if world > 1 else p).detach() for p in weights]


def fail_on_the_first(rank, world):
    """Let rank 0 alone fail."""

    def work():
        raise ValueError(f"{rank} is wrong")

    return Ranks.current().on_first(work)


def normalise(rank, world, x, upstream):
    """Return the output, the gradients of this rank and the buffers of a synchronised BatchNorm."""
    norm = nn.BatchNorm2d(x.shape[1]).to(x.dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, x.shape[1]))
    rows = Ranks.current().rows(len(x))
    norm = synchronised(nn.Sequential(norm), Ranks.current(), x.device)
    own = rows.take(x).clone().requires_grad_()
    y = norm(own)
    y.backward(rows.take(upstream))
    return y.detach(), own.grad, norm[0].weight.grad, norm.state_dict()

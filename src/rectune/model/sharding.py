"""FSDP2 over the frozen base model: each process keeps a part of every block, the whole adapter and the whole head."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from rectune.errors import ModelError, ResourceError
from rectune.model.answers import backbone_of
from rectune.world import World


def blocks_of(backbone: Any, name: str) -> Any:
    """The blocks of a backbone.

    Raises:
        ModelError: it keeps them under another name than transformers' language models do.
    """
    blocks = getattr(backbone, "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise ModelError(f"{name}: its blocks are not found, so it cannot be sharded; use distributed_type: MULTI_GPU")
    return blocks


def mesh_of(world: World, device: torch.device) -> Any:
    """The devices of all processes, in one row; called by all of them at the same time.

    Raises:
        ResourceError: this version of PyTorch cannot leave the adapter out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ResourceError("fsdp_version: sharding needs PyTorch 2.7 or newer; use distributed_type: MULTI_GPU")

    return init_device_mesh(device.type, (world.size,))


def shard_blocks(model: Any, mesh: Any, device: torch.device) -> None:
    """Shard the frozen weights of every block among all processes, in place (Zhao et al. 2023, as `fully_shard`).

    A block's weights are gathered when its forward or backward pass begins and let go when it ends. The adapter stays
    whole in every process: one group of FSDP2 may not mix its float32 with a 16-bit base, it is small, and so
    optimiser, clipping and checkpoints are those of one process, to be gone on from by any number of processes.
    Embedding, norms and head stay whole too, since answers read rows of the head outside of any block.

    Args:
        model: with its adapter attached; may still lie in main memory.
        mesh: from `mesh_of`.
        device: where the parts go, and all that stays whole.
    """
    from torch.distributed.fsdp import fully_shard

    bare, backbone = backbone_of(model)
    blocks = blocks_of(backbone, type(bare).__name__)
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    whole |= set(backbone.parameters()) - {parameter for block in blocks for parameter in block.parameters()}
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # A root without weights of its own, which lets the next block's weights be fetched while one computes.
    fully_shard(backbone, mesh=mesh, ignored_params=whole)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not hasattr(parameter, "full_tensor"):  # what is sharded is there already
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))

"""What has started this process: alone, or one of several by `accelerate launch` or `torchrun`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from rectune.errors import ConfigError, ResourceError
from rectune.world import ALONE, World

_TIMEOUT = timedelta(minutes=30)
"""How long a process waits in a collective for the slowest other one; the main one may be saving a checkpoint."""
_OTHER_LAUNCHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def world_size() -> int:
    """How many processes a launcher has started for this command; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1) if os.environ.get("RANK") else 1


def met() -> bool:
    """Whether this process has met the others; until then each finds what is wrong by itself, and one says it."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_available() and distributed.is_initialized())


def name_of_process() -> str:
    """What begins a line of another process than the main one, where there are several; empty in that one."""
    rank = int(os.environ.get("RANK") or 0)
    return f"process {rank}: " if world_size() > 1 and rank else ""


def _sharding() -> bool:
    """Whether the launcher asks for FSDP2.

    Accelerate would shard the adapter too, and does not shard on a CPU at all, so it is told nothing of it.

    Raises:
        ConfigError: it asks for FSDP in a form that is not supported.
    """
    if not _asked("ACCELERATE_USE_FSDP"):
        return False
    del os.environ["ACCELERATE_USE_FSDP"]
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("fsdp_version: got 1, allowed: 2; set fsdp_version: 2 in the launcher's configuration")
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if _asked(f"FSDP_{name}"):
            instead = "gradient_checkpointing=true" if name.startswith("ACT") else "more processes, or use_qlora=true"
            raise ConfigError(f"fsdp_{name.lower()}: got true, which is not supported; leave it out and use {instead}")
    if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "").lower() == "false":
        raise ConfigError(
            "fsdp_reshard_after_forward: got false, with which every process would hold the whole model; leave it out, "
            "or use distributed_type: MULTI_GPU"
        )
    return True


def join_world() -> World:
    """Meet the other processes that a launcher has started; alone without a launcher.

    Raises:
        ConfigError: the launcher asks for what is not supported.
        ResourceError: there are more processes on this machine than cards, or the others cannot be reached.
    """
    size = world_size()
    if size == 1:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # nothing to shard among
        return ALONE
    for name, what in _OTHER_LAUNCHERS.items():
        if _asked(name):
            raise ConfigError(f"launcher: {what} is not supported; use distributed_type: MULTI_GPU or FSDP")
    sharded = _sharding()
    import torch

    distributed: Any = torch.distributed
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK") or 0)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
    if torch.cuda.is_available():
        if _asked("ACCELERATE_USE_CPU"):
            raise ConfigError("use_cpu: got true on a machine with CUDA; hide its cards with CUDA_VISIBLE_DEVICES=")
        if local >= torch.cuda.device_count():
            raise ResourceError(
                f"processes: {local_size} on this machine, which has {torch.cuda.device_count()} cards; give one a card"
            )
        torch.cuda.set_device(local)
        from accelerate.utils import check_cuda_p2p_ib_support

        if not check_cuda_p2p_ib_support():  # RTX 4000 cards, to which `accelerate launch` does the same
            for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
                os.environ.setdefault(name, "1")
        backend, said = "cpu:gloo,cuda:nccl", "NCCL"
    elif torch.backends.mps.is_available():
        raise ResourceError("processes: several train on CUDA cards or on CPUs, not on an Apple GPU; start one")
    else:
        backend, said = "gloo", "gloo on CPUs"
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else it is cpu:0, where PyTorch restores no state
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosting = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        first = distributed.TCPStore(host, port, None, hosting, timedelta(minutes=5), wait_for_workers=False)
        distributed.init_process_group(
            backend,
            store=distributed.PrefixStore(f"rectune/{attempt}/group", first),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ResourceError(f"processes: the others cannot be reached through {host}:{port} ({reason})") from error
    store = distributed.PrefixStore(f"rectune/{attempt}/world", first)
    node = int(os.environ.get("GROUP_RANK") or 0)
    return World(rank, size, local, local_size, node, said, sharded, store)

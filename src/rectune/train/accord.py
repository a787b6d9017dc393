"""What several processes cannot do together, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable

from rectune.config import Config
from rectune.config_backends import NATIVE
from rectune.errors import ConfigError
from rectune.launched import world_size
from rectune.train.checkpoints import Checkpoint
from rectune.world import World

Say = Callable[[str], None]


def check_processes(config: Config, rehearsal: bool) -> None:
    """See that a training can be shared by as many processes as a launcher has started, before they meet.

    Raises:
        ConfigError: it is a rehearsal, or another trainer computes its steps.
    """
    if world_size() == 1:
        return
    if rehearsal:
        raise ConfigError("--dry-run: it rehearses in one process; start it without accelerate or torchrun")
    if config.backend != NATIVE:
        raise ConfigError(
            f"backend: got {config.backend!r} in {world_size()} processes, allowed: {NATIVE}; its trainer was made to "
            "compute the steps of one process here"
        )


def check_world(config: Config, world: World, say: Say) -> None:
    """See that the model can be sharded where that is asked for, and say who trains; the main process calls this.

    Raises:
        ConfigError: a key does not go with sharding.
    """
    if world.alone:
        return
    check_sharding(config, world)
    rows, times = config.per_device_train_batch_size, config.gradient_accumulation_steps
    kind = "each with a part of the base model's blocks (FSDP2)" if world.sharded else "each with the whole model"
    say(
        f"processes: {world.size} through {world.backend}, {kind}; a step takes {world.size} x {rows} x {times} = "
        f"{world.size * rows * times} sequences"
    )


def check_sharding(config: Config, world: World) -> None:
    """See that a model that several processes are to share can be shared.

    Raises:
        ConfigError: its base model is quantised, or it is to generate.
    """
    if not world.sharded:
        return
    if config.use_qlora or config.quantization_bit is not None:
        raise ConfigError(
            "use_qlora: a quantised base model is not sharded; use distributed_type: MULTI_GPU, where each card holds "
            "all of it in 4 or 8 bits, or use_qlora=false"
        )
    if config.gen_eval_samples:
        raise ConfigError("gen_eval_samples: a sharded model generates nothing; use 0")


def check_seen(start: Checkpoint, world: World) -> None:
    """See that this process's machine has the checkpoint that the run goes on from.

    Raises:
        ConfigError: it has not.
    """
    if not world.main and not start.folder.is_dir():
        raise ConfigError(
            f"output_dir: {start.folder} is not there for process {world.rank}; to resume on several machines, put it "
            "on a file system that they share"
        )

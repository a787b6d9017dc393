"""The part of the Trainer that makes several processes take the steps of one."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

from rectune.errors import NotFinite, PeerFailed
from rectune.train.halving import Halving
from rectune.train.resumable import ResumableTrainer, refusing
from rectune.train.share import share_loader
from rectune.world import World

RANDOM = "rng_state.pth"
"""The random states of the main process, as those of a single one."""
RANDOM_OF_OTHERS = "rng_state_of_others.pth"
"""Those of the others, which draw dropout only; of one process there are none."""
_WHOLE = 1 << 30
"""Rows at once where nothing is halved."""


def _device_state() -> dict[str, torch.Tensor]:
    """What dropout is drawn from."""
    state = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def _set_device_state(state: dict[str, torch.Tensor]) -> None:
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state["cuda"])


def _shared(message: str) -> NotFinite:
    """What all processes have agreed that one of them has met."""
    error = NotFinite(message)
    error.shared = True
    return error


class ParallelTrainer(ResumableTrainer):
    """A ResumableTrainer whose steps may be shared by several processes; with one it changes nothing.

    The model is not wrapped. Each process computes its share of a step, and once a step the gradients of the adapter,
    which is all that is trained, are added in one message. So a process may take its micro-batches apart where memory
    runs out, look for a broken one, or find an error, without another one waiting in the middle of a backward pass.

    Args:
        world: the processes.
        halving: how micro-batches are taken apart; all processes come to the smallest part of any.
        arguments: as `ResumableTrainer` takes them.
    """

    def __init__(self, *, world: World, halving: Halving, **arguments: Any) -> None:
        self.world = world
        self.halving = halving
        self.put_by: NotFinite | None = None
        super().__init__(**arguments)

    def create_accelerator_and_postprocess(self) -> None:
        """Keep Accelerate from wrapping the model in DistributedDataParallel."""
        super().create_accelerator_and_postprocess()
        if not self.world.alone:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> Any:
        """The micro-batches of this process."""
        if self.world.alone:
            return super().get_train_dataloader()
        return share_loader(self.train_dataset, self._train_batch_size, self.args.seed, self.world, self.data_collator)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train; processes other than the main one draw other dropout than it does."""
        self.world.share_parameters(self.model.parameters())
        if not self.world.main:
            torch.manual_seed(self.args.seed + self.world.rank)
        return super().train(*arguments, **named)

    def not_finite(self, error: NotFinite) -> None:
        """Stop at a loss that is no number; where the model is sharded, once all have made their passes of the step.

        Raises:
            NotFinite: at once, where no other process waits for this one's backward pass.
        """
        if not self.world.sharded:
            raise error
        self.put_by = self.put_by or error

    def take_part(self, model: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A micro-batch of this process; behind the last one of a step, the gradients of all processes are added.

        Args:
            model: whose gradients they are.
            compute: forward and backward of the micro-batch; gives its loss.

        Returns:
            The loss; times the number of processes, of whose losses the Trainer logs the mean.

        Raises:
            NotFinite: in all processes, where a loss is not finite in any of them.
            PeerFailed: another process has met another error.
        """
        if self.world.alone:
            return compute()
        try:
            loss = compute()
        except Exception as error:
            if not self.world.sharded:  # else the others wait in the middle of a pass, and end when this process does
                self._agree(error)
            raise
        if self.accelerator.sync_gradients:
            self._agree(self.put_by)
            rows = self.halving.rows or _WHOLE
            smallest = -self.world.largest([-rows])[0]
            self.halving.rows = None if smallest == _WHOLE else smallest
            self.world.sum_gradients(model.parameters())
        return loss * self.world.size

    def _agree(self, error: Exception | None) -> None:
        """End the step in all processes where one of them could not compute its share.

        The entry that a loss which is no number leaves in the history goes to all, since the main process keeps it.
        """
        if not self.world.any(error is not None):
            return
        history = self.state.log_history
        own = (history[-1], str(error)) if isinstance(error, NotFinite) else None
        told = next((each for each in self.world.gather(own) if each is not None), None)
        if told is None:
            if error is None:
                raise PeerFailed("")
            return
        if own is not None:
            history.pop()
        history.append(told[0])
        raise _shared(told[1]) from error

    def hear(self, error: NotFinite) -> None:
        """Let all processes, each of which has met an error, raise the one that names the batch to blame.

        Raises:
            NotFinite: another process knows it.
        """
        error.shared = True
        entries = self.world.gather((self.state.log_history[-1], str(error)))
        entry, message = next((told for told in entries if told[0].get("rows")), entries[0])
        self.state.log_history[-1] = entry
        if message != str(error):
            raise _shared(message)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint by the main process; the others take part in what all do together."""
        if not self.world.alone:
            self._tr_loss.fill_(self.world.mean(self._tr_loss.item()))
        if self.world.main:
            super()._save_checkpoint(model, trial)
        else:
            self.join_saving(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random states so that a single process finds its own, too."""
        if self.world.alone:
            super()._save_rng_state(output_dir)
            return
        states = self.world.gather(_device_state())
        if self.world.main:
            own = {"python": random.getstate(), "numpy": np.random.get_state(), **states[0]}
            torch.save(own, Path(output_dir) / RANDOM)
            torch.save(states[1:], Path(output_dir) / RANDOM_OF_OTHERS)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Put this process's random state back; one that was not there then draws anew, from seed, step and number."""
        if self.world.alone or checkpoint is None:
            super()._load_rng_state(checkpoint)
            return
        with refusing(checkpoint, RANDOM):
            if self.world.main:
                with safe_globals():
                    state = torch.load(Path(checkpoint) / RANDOM, weights_only=True)
                random.setstate(state["python"])
                np.random.set_state(state["numpy"])
                _set_device_state(state)
                return
            file = Path(checkpoint) / RANDOM_OF_OTHERS
            states = torch.load(file, weights_only=True) if file.is_file() else []
            if self.world.rank <= len(states):
                _set_device_state(states[self.world.rank - 1])
            else:
                torch.manual_seed(hash((self.args.seed, self.state.global_step, self.world.rank)) % 2**32)

    def _finalize_training(self, *arguments: Any) -> Any:
        """End the training with the loss of all processes."""
        if not self.world.alone:
            self._tr_loss.fill_(self.world.mean(self._tr_loss.item()))
        return super()._finalize_training(*arguments)

"""Several processes take the batches of one: who computes what, in which order, and what a resume may change."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from rectune.config import Config
from rectune.errors import ConfigError, NotFinite, PeerFailed, RectuneError, ResourceError
from rectune.model.footprint import Memory
from rectune.model.shape import model_shape
from rectune.train.arguments import planned_steps
from rectune.train.batches import without_answers
from rectune.train.changes import check_changes
from rectune.train.halving import Halving
from rectune.train.parallel import ParallelTrainer
from rectune.train.share import Share
from rectune.train.signals import Signals
from rectune.world import World


def shares(sequences: int, batch: int, processes: int, epoch: int) -> list[list[list[int]]]:
    """What each process is given of an epoch."""
    found = []
    for rank in range(processes):
        share = Share(range(sequences), batch, 7, World(rank, processes))
        share.set_epoch(epoch)
        given_out = list(share)
        assert len(given_out) == len(share)
        found.append(given_out)
    return found


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_every_step_of_several_processes_takes_the_sequences_that_a_step_of_one_takes(
    sequences: int, batch: int, processes: int, accumulation: int, epoch: int
) -> None:
    order = SeedableRandomSampler(range(sequences), data_seed=7)
    order.set_epoch(epoch)
    whole = list(order)
    step = batch * processes * accumulation
    each = shares(sequences, batch, processes, epoch)
    assert len({len(share) for share in each}) == 1
    steps = -(-len(each[0]) // accumulation)
    assert steps == -(-sequences // step)
    for number in range(steps):
        micro = slice(number * accumulation, (number + 1) * accumulation)
        taken = [index for share in each for part in share[micro] for index in part]
        assert sorted(taken) == sorted(whole[number * step : (number + 1) * step])


def test_a_process_for_which_nothing_is_left_gets_an_empty_batch_at_the_end() -> None:
    first, second, third = shares(9, 2, 3, 0)  # five batches: 2 + 2 + 2, 2 + 1
    assert [len(part) for part in first] == [2, 2]
    assert [len(part) for part in second] == [2, 1]
    assert [len(part) for part in third] == [2, 0]


def test_a_batch_without_answers_gives_a_loss_and_gradients_of_zero() -> None:
    batch = {
        "input_ids": torch.ones(1, 4, dtype=torch.int64),
        "rows": torch.tensor([0, 0]),
        "positions": torch.tensor([1, 3]),
        "labels": torch.tensor([5, 6]),
        "prior": torch.zeros(2),
        "trees": torch.tensor([0, 0]),
    }
    empty = without_answers(batch)
    assert empty["input_ids"] is batch["input_ids"]
    assert {len(value) for name, value in empty.items() if name != "input_ids"} == {0}
    weight = torch.ones(4, 2, requires_grad=True)
    loss = weight[empty["positions"]].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and weight.grad is not None and not weight.grad.any()


def changed(make: Callable[..., Config], processes: tuple[int, int], **after: Any) -> list[str]:
    lines: list[str] = []
    before = make(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    check_changes(before, before.with_overrides(**after), Path("checkpoint-4"), lines.append, processes)
    return lines


def test_a_run_goes_on_in_other_processes_where_a_step_takes_as_many_sequences(
    tiny_config: Callable[..., Config],
) -> None:
    assert changed(tiny_config, (2, 2)) == []
    assert changed(tiny_config, (2, 1), gradient_accumulation_steps=8) == [
        "resume: gradient_accumulation_steps was 4 and is now 8: the sequences of a step stay the same",
        "resume: processes was 2 and is now 1: the sequences of a step stay the same",
    ]
    assert len(changed(tiny_config, (1, 4), gradient_accumulation_steps=1)) == 2


def test_other_processes_that_would_change_a_step_are_refused_with_the_accumulation_that_keeps_it(
    tiny_config: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match=r"processes was 2 and is now 1, but .*gradient_accumulation_steps=8"):
        changed(tiny_config, (2, 1))
    with pytest.raises(ConfigError) as error:
        changed(tiny_config, (2, 3))  # 16 sequences are no whole number of times 2 x 3
    assert "processes was 2 and is now 3" in str(error.value) and "as it does with" not in str(error.value)


def test_more_processes_take_fewer_steps_an_epoch(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(max_steps=-1, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert [planned_steps(config, 17, 2.0, processes) for processes in (1, 2, 4)] == [10, 6, 4]
    assert planned_steps(config.with_overrides(max_steps=8), 17, 2.0, 4) == 8


def test_a_sharded_model_is_planned_with_its_part_two_blocks_and_a_message_of_gradients(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(gradient_accumulation_steps=1)
    shape = model_shape(config, print)
    one, many, sharded = (
        Memory(config, shape, "cuda", 2, "sdpa", 0, 0.0, processes, parts)
        for processes, parts in ((1, False), (4, False), (4, True))
    )
    linear = shape.linear_parameters
    assert one.weights() == many.weights() == 2 * shape.parameters
    two_blocks = 2 * linear // shape.blocks
    assert sharded.weights() == 2 * (shape.parameters - linear) + 2 * (linear // 4 + two_blocks)
    assert many.gradients() == sharded.gradients() == 2 * one.gradients()


class Beside(World):
    """The first of two processes, with what the second one would say."""

    def __init__(
        self, rows: int = 1 << 30, told: tuple[dict[str, Any], str] | None = None, failed: bool = False
    ) -> None:
        super().__init__(0, 2)
        self.rows, self.told, self.failed = rows, told, failed

    def any(self, flag: bool) -> bool:
        return flag or self.failed

    def largest(self, values: Sequence[int]) -> list[int]:
        return [max(values[0], -self.rows)]

    def gather(self, value: Any) -> list[Any]:
        return [value, self.told]

    def sum_gradients(self, parameters: Any) -> None:
        for parameter in parameters:
            parameter.grad += 10.0


def step(world: World, loss: Callable[[], torch.Tensor], last: bool = True) -> tuple[Any, Any, Any]:
    """The trainer, the model and the loss of a micro-batch of the first of two processes."""
    trainer: Any = ParallelTrainer.__new__(ParallelTrainer)
    trainer.world, trainer.halving, trainer.put_by = world, Halving(True, print), None
    trainer.accelerator, trainer.state = SimpleNamespace(sync_gradients=last), SimpleNamespace(log_history=[])
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.ones(1, 1)
    try:
        return trainer, model, trainer.take_part(model, loss)
    except RectuneError as error:
        return trainer, model, error


def test_behind_the_last_micro_batch_gradients_are_added_and_the_smallest_parts_are_taken() -> None:
    _, model, loss = step(Beside(), lambda: torch.tensor(0.5), last=False)
    assert loss == 1.0 and model.weight.grad == 1.0  # of two losses the mean is logged, so each counts twice
    trainer, model, _ = step(Beside(), lambda: torch.tensor(0.5))
    assert model.weight.grad == 11.0 and trainer.halving.rows is None
    trainer, _, _ = step(Beside(rows=3), lambda: torch.tensor(0.5))
    assert trainer.halving.rows == 3


def test_what_another_process_has_met_ends_the_step_before_gradients_are_added() -> None:
    entry = {"step": 4, "rows": "of user 7"}
    trainer, model, error = step(Beside(told=(entry, "step 4: of user 7"), failed=True), lambda: torch.tensor(0.5))
    assert isinstance(error, NotFinite) and str(error) == "step 4: of user 7" and error.shared
    assert trainer.state.log_history == [entry] and model.weight.grad == 1.0
    _, _, error = step(Beside(failed=True), lambda: torch.tensor(0.5))
    assert isinstance(error, PeerFailed)

    def full() -> torch.Tensor:
        raise ResourceError("this card is full")

    _, _, error = step(Beside(), full)
    assert isinstance(error, ResourceError) and str(error) == "this card is full"


def test_a_signal_that_a_launcher_passes_on_counts_once_and_a_later_one_stops_at_once() -> None:
    with Signals(same=60) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGTERM
    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

"""Several processes share the examples of each optimiser step, so that their number does not change the result.

`batch_size * gradient_accumulation` examples are one step, on however many processes. Accelerate's own way
multiplies them by the number of processes, and fills the last step of an epoch with examples of the first.

    one step of 8, batch_size 2    1 process    2 2 2 2        2 processes    2 2     3 processes    2 1
                                                                              2 2                    2 1
                                                                                                     1 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from llmdistill.config import Train

COUNTED = "counted"
"""Key of a batch that says whether its targets count. A process without a share reads an example that does not."""

Place = tuple[int, bool]
"""Number of an example, and whether it counts."""


def divided(settings: Train) -> tuple[int, int]:
    """Examples of one forward pass of one process, at most, and how many such passes it does in one step."""
    share = _up(settings.batch_size * settings.gradient_accumulation, settings.num_processes)
    passes = _up(share, settings.batch_size)
    return _up(share, passes), passes


def num_steps(settings: Train, num_examples: int) -> int:
    """Optimiser steps of the whole training."""
    per_epoch = _up(num_examples, settings.batch_size * settings.gradient_accumulation)
    return -int(-per_epoch * settings.epochs // 1)


def _up(number: int, by: int) -> int:
    return -(-number // by)


def _parts(items: Sequence[int], number: int) -> list[Sequence[int]]:
    """`number` runs of items whose lengths differ by one at most, the longer ones first."""
    short, longer = divmod(len(items), number)
    starts = [part * short + min(part, longer) for part in range(number + 1)]
    return [items[start:stop] for start, stop in zip(starts[:-1], starts[1:], strict=True)]


@dataclass(frozen=True)
class Shares:
    """The batches of one process in one epoch: a batch sampler.

    Attributes:
        num_examples: of the whole dataset.
        settings: how large a step is, and how many processes share it.
        rank: which of them this is.
        seed: the order of epoch e is drawn from `seed + e`, as Accelerate's SeedableRandomSampler does.
        steps_done: optimiser steps done since training began, before it was resumed included.
    """

    num_examples: int
    settings: Train
    rank: int
    seed: int
    steps_done: Callable[[], int]

    @property
    def _step(self) -> int:
        return self.settings.batch_size * self.settings.gradient_accumulation

    def __len__(self) -> int:
        whole, rest = divmod(self.num_examples, self._step)
        last = _up(_up(rest, self.settings.num_processes), self.settings.batch_size)
        return whole * divided(self.settings)[1] + last

    def __iter__(self) -> Iterator[list[Place]]:
        epoch = self.steps_done() // _up(self.num_examples, self._step)
        order = torch.randperm(self.num_examples, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        for start in range(0, self.num_examples, self._step):
            yield from self._batches(order[start : start + self._step])

    def _batches(self, step: list[int]) -> Iterator[list[Place]]:
        """This process's part of a step, in as many batches as the largest part needs."""
        shares = _parts(step, self.settings.num_processes)
        for batch in _parts(shares[self.rank], _up(len(shares[0]), self.settings.batch_size)):
            yield [(index, True) for index in batch] or [(step[0], False)]


class _Placed(Dataset[tuple[Any, bool]]):
    """A dataset that is asked for examples by `Place`."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: Place) -> tuple[Any, bool]:
        index, counted = place
        return self.examples[index], counted


class SharedSteps(Trainer):
    """A trainer whose steps are shared by the processes. To be inherited before another trainer.

    Args:
        share: how large a step is, and how many processes share it.
    """

    def __init__(self, *args: Any, share: Train, **kwargs: Any) -> None:
        self.share = share
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches; already shared, so that Accelerate must not share them once more."""
        examples: Any = self.train_dataset
        shares = Shares(
            len(examples),
            self.share,
            self.args.process_index,
            self.args.data_seed or 0,
            lambda: self.state.global_step,
        )

        def collate(placed: list[tuple[Any, bool]]) -> dict[str, Any]:
            batch = dict(self.data_collator([example for example, _ in placed]))
            return batch | {COUNTED: placed[0][1]}

        return DataLoader(_Placed(examples), batch_sampler=shares, collate_fn=collate)  # type: ignore[arg-type]

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | int | None:
        """Transformers' count, without the targets that do not count."""
        counted = [batch if batch[COUNTED] else _without_targets(batch) for batch in batch_samples]
        return super()._get_num_items_in_batch(counted, device)  # type: ignore[no-any-return]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of what counts. What does not still goes forward and backward, because the others wait for it."""
        counts = inputs.pop(COUNTED, True)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if counts else loss * 0.0


def _without_targets(batch: dict[str, Any]) -> dict[str, Any]:
    if "labels" not in batch:
        return batch
    return batch | {"labels": torch.full_like(batch["labels"], -100)}

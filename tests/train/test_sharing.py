"""How processes share the examples of an optimiser step."""

from __future__ import annotations

import itertools

import pytest
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler

from llmdistill.config import Train
from llmdistill.train.sharing import Place, Shares, divided, num_steps

SEED = 5
CASES = list(itertools.product([1, 2, 3, 8, 13, 24, 29], [1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]))
"""Examples, batch size, accumulation, processes."""


def settings(batch_size: int, accumulation: int, num_processes: int = 1) -> Train:
    return Train(batch_size=batch_size, gradient_accumulation=accumulation, num_processes=num_processes, epochs=2)


def shares_of(num_examples: int, train: Train, epoch: int = 0) -> list[list[list[Place]]]:
    """The batches of every process in one epoch."""
    done = epoch * num_steps(train, num_examples) // 2
    return [list(Shares(num_examples, train, rank, SEED, lambda: done)) for rank in range(train.num_processes)]


def steps_of(num_examples: int, train: Train, epoch: int = 0) -> list[list[int]]:
    """The examples that count in each optimiser step, over all processes, sorted."""
    passes, shares = divided(train)[1], shares_of(num_examples, train, epoch)
    starts = range(0, len(shares[0]), passes)
    steps = [[batch for own in shares for batch in own[start : start + passes]] for start in starts]
    return [sorted(index for batch in step for index, counts in batch if counts) for step in steps]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_step_holds_the_same_examples_once_each_however_many_processes_share_it(epoch):
    for num_examples, batch_size, accumulation, num_processes in CASES:
        alone = steps_of(num_examples, settings(batch_size, accumulation), epoch)
        shared = steps_of(num_examples, settings(batch_size, accumulation, num_processes), epoch)
        assert shared == alone
        assert sorted(itertools.chain.from_iterable(shared)) == list(range(num_examples))


def test_every_process_does_as_many_passes_as_the_others_and_none_is_larger_than_the_batch_size():
    for num_examples, batch_size, accumulation, num_processes in CASES:
        train = settings(batch_size, accumulation, num_processes)
        shares = shares_of(num_examples, train)
        lengths = {len(own) for own in shares} | {len(Shares(num_examples, train, 0, SEED, lambda: 0))}
        assert len(lengths) == 1
        sizes = {len(batch) for own in shares for batch in own}
        assert min(sizes) >= 1
        assert max(sizes) <= batch_size


def test_only_a_process_without_a_share_reads_an_example_that_does_not_count():
    shares = shares_of(9, settings(4, 1, 2))
    assert [[counts for _, counts in own[-1]] for own in shares] == [[True], [False]]
    assert shares[1][-1][0][0] == shares[0][-1][0][0]
    assert all(counts for own in shares_of(10, settings(4, 1, 2)) for batch in own for _, counts in batch)


def test_one_process_reads_in_the_order_of_accelerates_sampler():
    for epoch in (0, 1):
        sampler = SeedableRandomSampler(range(22), data_seed=SEED)
        sampler.set_epoch(epoch)
        (own,) = shares_of(22, settings(4, 1), epoch)
        assert [[index for index, _ in batch] for batch in own] == list(BatchSampler(sampler, 4, drop_last=False))


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1.0, 6), (1.1, 7), (3.0, 18)])
def test_the_steps_of_a_part_of_an_epoch_are_rounded_up(epochs, steps):
    assert num_steps(Train(batch_size=4, epochs=epochs), 22) == steps

"""The teacher's distribution as it was captured before training."""

from __future__ import annotations

from itertools import accumulate

from llmdistill.engines.batches import Batch
from llmdistill.signals.codec import TopRows
from llmdistill.signals.distributions import Samples, TopK
from llmdistill.signals.store import Store


class StoredTeacher:
    """Looks up each record of a batch; its target tokens must be those the signals were captured for.

    Reading needs no model and no device: a data loader's worker can do it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def needs_batch(self) -> bool:
        """It does not read the text again."""
        return False

    def distribution(self, batch: Batch, asked: Batch | None = None) -> TopK | Samples:
        """What is stored for the batch's targets, on the CPU.

        Raises:
            DamagedError, ChangedError: as `Store.read_all`.
        """
        import torch

        labels = batch.labels.cpu().numpy()
        ends = list(accumulate(batch.num_targets))
        targets = [labels[end - number : end] for number, end in zip(batch.num_targets, ends, strict=True)]
        rows, shared = self.store.read_all(batch.record_ids, targets), self.store.header.vocab_size
        if isinstance(rows, TopRows):
            ids, log_probs, tail = map(torch.from_numpy, (rows.ids, rows.log_probs, rows.tail_log_prob))
            return TopK(ids, log_probs, tail, shared)
        weights = torch.from_numpy(rows.counts).float() / self.store.header.draws
        return Samples(torch.from_numpy(rows.ids), weights, shared)

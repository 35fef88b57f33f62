"""The teacher in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmdistill.engines.batches import Batch, target_hidden
from llmdistill.engines.models import ModelSource, load_model, load_tokenizer
from llmdistill.errors import ModelError
from llmdistill.signals.distributions import Full, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OnlineTeacher:
    """Runs the teacher on each batch, without gradients.

    Args:
        model: the teacher.
        vocab_size: number of leading ids that both models share.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size

    @classmethod
    def open(
        cls, source: ModelSource, student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str
    ) -> OnlineTeacher:
        """Load the teacher for a student.

        Raises:
            ModelError: the two tokenizers give different ids, so their distributions cannot be compared.
        """
        check_same_tokens(load_tokenizer(source), tokenizer, source.name)
        model = load_model(source, dtype, device)
        return cls(model, shared_vocab_size(model, student))

    @property
    def needs_batch(self) -> bool:
        """It reads the text."""
        return True

    def distribution(self, record_ids: Sequence[str], asked: Batch | None) -> Full:
        """The teacher's hidden states at the batch's targets, with its output layer."""
        import torch

        assert asked is not None
        with torch.no_grad():
            return Full(target_hidden(self.model, asked), head_of(self.model), self.vocab_size)


def shared_vocab_size(teacher: PreTrainedModel, student: PreTrainedModel) -> int:
    """Ids both output layers have. Models of one family pad the vocabulary to different sizes; no token is there."""
    return min(teacher.get_output_embeddings().weight.shape[0], student.get_output_embeddings().weight.shape[0])


def check_same_tokens(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, teacher_name: str) -> None:
    """Raise `ModelError` unless both tokenizers map the same tokens to the same ids (equal sizes prove nothing)."""
    one, other = teacher.get_vocab(), student.get_vocab()
    if one == other:
        return
    token = next(token for token in sorted(set(one) | set(other)) if one.get(token) != other.get(token))
    message = (
        f"teacher and student tokenizers differ: {token!r} is id {one.get(token)} for the teacher "
        f"and {other.get(token)} for the student"
    )
    raise ModelError(message, where=teacher_name, do="use train.method: sft, or a student of the teacher's family")

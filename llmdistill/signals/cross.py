"""A teacher of another vocabulary: it reads its own tokens, and the two are compared where they meet.

Both tokenisations write the same bytes of the answer. Where both are about to write the next byte after the same
ones, their distributions are over what comes next after the same text; everywhere else there is nothing to compare:

    student   The | cat|s   | sat | .
    teacher   The | c|ats   | s|at|.
    compared  ^     ^         ^    ^
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from llmdistill.config import Train
from llmdistill.engines.batches import Batch, pad, target_hidden
from llmdistill.engines.examples import Example, Unusable, encode
from llmdistill.engines.models import ModelSource, end_tokens_of, load_model, load_tokenizer
from llmdistill.engines.quantize import Bits
from llmdistill.errors import ModelError
from llmdistill.record import Record, Reject
from llmdistill.signals.distributions import Matched, head_of
from llmdistill.signals.vocabulary import UNSHARED, compare_models, crosses, longest_read, unshared_id
from llmdistill.templates import TeacherTemplate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BYTE = re.compile("<0x([0-9A-F]{2})>")

_PROBE = "An answer, 12.5% of it. 답은 네, 뷁입니다.\n\tif x: é 🍎"

Offsets = list[int | None]
"""For each target token, how many bytes of the answer stand before it; None outside the answer."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """One record in both tokenisations.

    Attributes:
        asked: as the teacher reads it: its own prompt and target.
        student_places, teacher_places: which of the targets meet, pair by pair.
    """

    asked: Example
    student_places: list[int]
    teacher_places: list[int]


class CrossTeacher:
    """Runs a teacher on its own tokens of the records, without gradients.

    Args:
        model: the teacher.
        pairings: every record that will be asked for, by id.
        pad_id: the teacher's padding token.
    """

    needs_batch = False

    def __init__(self, model: PreTrainedModel, pairings: Mapping[str, Pairing], pad_id: int) -> None:
        self.model, self._pairings, self._pad_id = model, pairings, pad_id

    @classmethod
    def open(
        cls,
        source: ModelSource,
        student_tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        records: Sequence[Record],
        template: TeacherTemplate | None,
        dtype: str,
        device: str,
        quantize: Bits | None = None,
    ) -> CrossTeacher:
        """Load the teacher and pair the examples' tokens with its own; `teachable` has left out those that cannot be.

        Args:
            template: how the teacher is asked; None asks as the student is asked.
            quantize: hold the teacher's weights in few bits.

        Raises:
            ModelError: which bytes a tokenizer's tokens stand for cannot be told.
        """
        pairer = Pairer.between(student_tokenizer, source)
        pairings, _ = pairer.pair_all(examples, records, template)
        return cls(load_model(source, dtype, device, quantize), pairings, pairer.teacher.pad_token_id)

    def distribution(self, batch: Batch, asked: Batch | None) -> Matched:
        """The teacher's hidden states where its tokens and the student's meet, with its output layer."""
        import torch

        found = [self._pairings[record_id] for record_id in batch.record_ids]
        read = pad([pairing.asked for pairing in found], self._pad_id).to(self.model.device)
        own = _flat([pairing.teacher_places for pairing in found], read.num_targets)
        targets = _flat([pairing.student_places for pairing in found], batch.num_targets)
        with torch.no_grad():
            hidden = target_hidden(self.model, read)[own.to(self.model.device)]
        return Matched(hidden, head_of(self.model), targets)


class Pairer:
    """Finds where the tokens of two tokenizers meet.

    Args:
        teacher_ends: ids that end the teacher's turn.
        max_length: longest sequence that the teacher reads, in tokens.

    Raises:
        ModelError: which bytes a tokenizer's tokens stand for cannot be told.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        teacher_ends: Sequence[int],
        max_length: int,
    ) -> None:
        self.teacher, self._ends, self._max_length = teacher, teacher_ends, max_length
        self._student_bytes, self._teacher_bytes = bytes_of_tokens(student), bytes_of_tokens(teacher)

    @classmethod
    def between(cls, student: PreTrainedTokenizerBase, teacher: ModelSource) -> Pairer:
        """For a teacher on this machine, which reads no more than it was made for."""
        tokenizer = load_tokenizer(teacher)
        return cls(student, tokenizer, end_tokens_of(teacher, tokenizer), longest_read(teacher))

    def pair_all(
        self, examples: Sequence[Example], records: Sequence[Record], template: TeacherTemplate | None
    ) -> tuple[dict[str, Pairing], list[Reject]]:
        """Pairings by record id, and the records that have none as rejects of `train`."""
        by_id = {record.id: record for record in records}
        pairings, rejects = {}, []
        for example in examples:
            record = by_id[example.record_id]
            found = self.pair(example, record, template)
            if isinstance(found, Unusable):
                rejects.append(Reject(record, "train", found.reason, found.detail))
            else:
                pairings[record.id] = found
        return pairings, rejects

    def pair(self, example: Example, record: Record, template: TeacherTemplate | None) -> Pairing | Unusable:
        """The record in the teacher's tokens, and where they meet those of the example.

        Args:
            template: how the teacher is asked; None asks as the student is asked.
        """
        as_asked = replace(record, prompt=template.ask(record.prompt)) if template else record
        asked = encode(as_asked, self.teacher, self._ends, self._max_length)
        if isinstance(asked, Unusable):
            return Unusable(f"teacher_{asked.reason}", f"as the teacher reads it: {asked.detail}")
        answer = record.reply.strip().encode()
        own = offsets(example.target, answer, self._student_bytes)
        met = pairs(own, offsets(asked.target, answer, self._teacher_bytes))
        if not met:
            return Unusable("not_aligned", "the teacher's tokens and the student's give back different texts")
        return Pairing(asked, [own for own, _ in met], [other for _, other in met])


def teachable(
    teacher: ModelSource,
    student: ModelSource,
    settings: Train,
    examples: Sequence[Example],
    records: Sequence[Record],
    template: TeacherTemplate,
    *,
    stage: str = "train",
) -> tuple[list[Example], list[Reject]]:
    """The examples that the teacher can be asked about, and the records of the others as rejects of `stage`.

    Raises:
        ModelError: the vocabularies differ, and the settings do not say what to do then.
    """
    verdict = compare_models(teacher, student)
    if crosses(verdict, settings, teacher.name):
        pairer = Pairer.between(load_tokenizer(student), teacher)
        pairings, rejects = pairer.pair_all(examples, records, template)
        return [example for example in examples if example.record_id in pairings], rejects
    known = [example for example in examples if unshared_id(example, verdict.shared_ids) is None]
    left = {example.record_id for example in examples} - {example.record_id for example in known}
    detail = f"it holds a token that the teacher does not know: {verdict.words()[0]}"
    return known, [Reject(record, stage, UNSHARED, detail) for record in records if record.id in left]


def pairs(student: Offsets, teacher: Offsets) -> list[tuple[int, int]]:
    """Positions of both tokenisations that have the same bytes of the answer before them, in rising order."""
    places = {offset: place for place, offset in enumerate(teacher) if offset is not None}
    return [(place, places[offset]) for place, offset in enumerate(student) if offset in places]


def offsets(target: Sequence[int], answer: bytes, bytes_of: Callable[[int], bytes]) -> Offsets:
    """How many bytes of the answer stand before each token of a target.

    A tokenizer that rewrites the text does not give its bytes back: then all are None.

    Args:
        target: token ids, the end token last.
        answer: the text in UTF-8, without what the template puts around it.
    """
    pieces = [bytes_of(token) for token in target]
    start = b"".join(pieces[:-1]).rfind(answer)
    if start < 0 or not answer:
        return [None] * len(target)
    before = [place - start for place in accumulate(map(len, pieces[:-1]), initial=0)]
    found: Offsets = [place if 0 <= place < len(answer) else None for place in before]
    # What follows the answer is the template's, unless it is the end token.
    found[-1] = before[-1] if before[-1] == len(answer) else None
    return found


def bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """The function that tells which bytes a token stands for; half a letter is what decoding cannot show.

    Raises:
        ModelError: neither way of writing bytes as tokens gives a probe text back.
    """
    for spell in (_byte_level, _byte_fallback):
        bytes_of = cache(_speller(tokenizer, spell))
        given = b"".join(map(bytes_of, tokenizer.encode(_PROBE, add_special_tokens=False)))
        if given.removeprefix(b" ") == _PROBE.encode():
            return bytes_of
    raise ModelError(
        "which bytes its tokens stand for cannot be told, so they cannot be compared with another tokenizer's",
        where=tokenizer.name_or_path,
        do="use train.method: sft",
    )


def _speller(tokenizer: PreTrainedTokenizerBase, spell: Callable[[str], bytes]) -> Callable[[int], bytes]:
    added = tokenizer.added_tokens_decoder

    def bytes_of(token: int) -> bytes:
        if token in added:
            return str(added[token].content).encode()
        return spell(tokenizer.convert_ids_to_tokens(token))

    return bytes_of


def _byte_level(piece: str) -> bytes:
    """Each letter is one byte (GPT-2); a piece that is not written so has none."""
    table = _byte_table()
    return bytes(table[letter] for letter in piece) if all(letter in table for letter in piece) else b""


def _byte_fallback(piece: str) -> bytes:
    """SentencePiece: a low line for a space, `<0xEB>` for a byte that is no letter."""
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


@cache
def _byte_table() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable Latin-1 stands for itself, the rest for letters from 256 on."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _flat(places: Sequence[Sequence[int]], lengths: Sequence[int]) -> torch.Tensor:
    """Places in one row of all targets from places in each example's."""
    import torch

    return torch.tensor(list(_shifted(places, lengths)), dtype=torch.long)


def _shifted(places: Sequence[Sequence[int]], lengths: Sequence[int]) -> Iterator[int]:
    starts = accumulate(lengths, initial=0)
    for start, own in zip(starts, places, strict=False):
        yield from (start + place for place in own)

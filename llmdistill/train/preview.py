"""The exact tokens a student is trained on, for a person to look at, and what a chat template did to the text.

For logit distillation there is also what the teacher reads: its prompt, and where the tokens of a teacher of another
vocabulary meet the student's.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdistill.config import Pipeline
from llmdistill.engines.examples import Example, Unusable, encode
from llmdistill.engines.models import ModelSource, end_tokens_of, load_tokenizer, render, render_prompt
from llmdistill.engines.resume import student_source
from llmdistill.errors import ModelError
from llmdistill.record import Record, from_row
from llmdistill.signals.cross import Pairer, bytes_of_tokens
from llmdistill.signals.vocabulary import UNSHARED, compare_models, crosses, teacher_here, unshared_id
from llmdistill.templates import TeacherTemplate, load_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EXCERPT = 60
_GENERATION = re.compile(r"\{%-?\s*generation\b")

Note = dict[str, str]


@dataclass(frozen=True)
class Reader:
    """What records are read with.

    Attributes:
        ends: ids that end the assistant's turn.
        max_length: longest sequence that is trained on, in tokens.
        template: how the teacher was asked; None where its distribution is not learned.
        pairer: finds where the teacher's tokens meet the student's; None where they are the same.
        shared_ids: leading ids that teacher and student share; None where it does not matter or cannot be told.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]
    max_length: int
    template: TeacherTemplate | None = None
    pairer: Pairer | None = None
    shared_ids: int | None = None

    @classmethod
    def of(cls, pipeline: Pipeline) -> Reader:
        """As the pipeline trains. A teacher that is not on this machine is not fetched: its own tokens stay unknown.

        Raises:
            ModelError: teacher and student have other vocabularies, and the pipeline does not say what to do.
        """
        source = student_source(pipeline)
        tokenizer = load_tokenizer(source)
        first = (tokenizer, end_tokens_of(source, tokenizer), pipeline.train.max_length)
        if pipeline.train.method != "kd":
            return cls(*first)
        template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
        teacher = teacher_here(pipeline.teacher) if pipeline.student.model else None
        if teacher is None:
            return cls(*first, template)
        return cls(*first, template, *_compared(pipeline, teacher, source, tokenizer))


def _compared(
    pipeline: Pipeline, teacher: ModelSource, student: ModelSource, tokenizer: PreTrainedTokenizerBase
) -> tuple[Pairer | None, int | None]:
    """How the teacher's tokens are compared with the student's: by pairs, or by the ids they share."""
    verdict = compare_models(teacher, student)
    if crosses(verdict, pipeline.train, teacher.name):
        return Pairer.between(tokenizer, teacher), None
    return None, verdict.shared_ids


def previews(rows: list[dict[str, Any]], pipeline: Pipeline) -> list[dict[str, Any]]:
    """Records as tokens, each with whether it is trained; or the problem that keeps a record from being trained.

    Keys: `tokens` with `id`, `text` and `trained` (and `matched` where the teacher has another vocabulary),
    `num_trained`, `end` (`trained`, or `added` where the template writes none), `notes` with `code` and `text`,
    `asked` (what the teacher reads before the target, as tokens; for `kd`), `problem`.
    """
    reader = Reader.of(pipeline)
    return [preview(from_row(row), reader) for row in rows]


def preview(record: Record, reader: Reader) -> dict[str, Any]:
    """One record, see `previews`."""
    example = encode(record, reader.tokenizer, reader.ends, reader.max_length, reader.template)
    if isinstance(example, Unusable):
        return _untrained(record, reader, example)
    unshared = _unshared(example, reader)
    if unshared:
        return _untrained(record, reader, unshared)
    after = _rendered(record, reader.tokenizer)[len(example.prompt) :]
    end = "trained" if len(after) >= len(example.target) else "added"
    found: dict[str, Any] = {
        "id": record.id,
        "tokens": [
            *_tokens(reader.tokenizer, example.prompt, trained=False),
            *_tokens(reader.tokenizer, example.target, trained=True),
        ],
        "num_trained": len(example.target),
        "end": end,
        "notes": [*_notes(record, example, after, reader)],
    }
    return found if reader.template is None else _with_teacher(found, record, example, reader)


def _with_teacher(found: dict[str, Any], record: Record, example: Example, reader: Reader) -> dict[str, Any]:
    """The preview with what the teacher reads."""
    if reader.pairer is None:
        return found | {"asked": _asked(reader.tokenizer, example.teacher_prompt)}
    paired = reader.pairer.pair(example, record, reader.template)
    if isinstance(paired, Unusable):
        return _untrained(record, reader, paired)
    for place, token in enumerate(found["tokens"], start=-len(example.prompt)):
        token["matched"] = place in paired.student_places
    text = f"{len(paired.student_places):,} of {len(example.target):,} trained tokens meet one of the teacher's"
    found["notes"].append(_note("matched", text))
    return found | {"asked": _asked(reader.pairer.teacher, paired.asked.prompt)}


def _untrained(record: Record, reader: Reader, why: Unusable) -> dict[str, Any]:
    """A record that is not trained on: its tokens as the template renders them, and why."""
    ids = _rendered(record, reader.tokenizer)
    return {
        "id": record.id,
        "tokens": _tokens(reader.tokenizer, ids, trained=False),
        "num_trained": 0,
        "notes": [*_reasons(record, ids, why.reason, reader)],
        "problem": f"{why.reason}: {why.detail}",
    }


def _unshared(example: Example, reader: Reader) -> Unusable | None:
    id_ = None if reader.shared_ids is None else unshared_id(example, reader.shared_ids)
    if id_ is None:
        return None
    return Unusable(UNSHARED, f"{reader.tokenizer.decode([id_])!r} is a token that the teacher does not know")


def _notes(record: Record, example: Example, after: list[int], reader: Reader) -> Iterator[Note]:
    """What is worth knowing about a record that is trained on.

    Args:
        after: what the template writes after the prompt.
    """
    tokenizer, num = reader.tokenizer, len(example.target)
    end = tokenizer.decode([example.target[-1]])
    if len(after) < num:
        yield _note("end_added", f"the template writes no end token: {end!r} is added, and trained")
    elif after[num:]:
        left = tokenizer.decode(after[num:])
        yield _note("left_after_end", f"the template writes {left!r} after the end token, which is not trained")
    if tokenizer.pad_token_id == example.target[-1]:
        yield _note("pad_is_end", f"{end!r} also pads: what is trained is told by position, the end token is")
    if num == 1:
        yield _note("only_end_trained", "the answer is empty: nothing but the end token is trained")
    if not _GENERATION.search(str(tokenizer.chat_template)):
        yield _note("no_generation_marks", "the template does not mark the answer: the mask is made without its help")
    rationale = (record.rationale or "").strip()
    if rationale and rationale not in record.reply:
        yield _note("rationale_apart", "the rationale is not part of the answer's text, so it is not trained")


def _reasons(record: Record, ids: list[int], reason: str, reader: Reader) -> Iterator[Note]:
    """What a person needs to see to understand why a record is not trained on."""
    tokenizer = reader.tokenizer
    if reason == "template_ate_text":
        yield from _eaten(record, tokenizer.decode(ids[len(render_prompt(tokenizer, record.prompt)) :]))
    elif reason == "template_mismatch":
        prompt = render_prompt(tokenizer, record.prompt)
        part = next(place for place, id_ in enumerate(prompt) if ids[place : place + 1] != [id_])
        alone, followed = (tokenizer.decode(given[part:])[:_EXCERPT] for given in (prompt, ids))
        yield _note("parted", f"the prompt alone goes on with {alone!r}, before an answer with {followed!r}")
    elif reason == "too_long_to_train":
        cut = tokenizer.decode(ids[reader.max_length :])[:_EXCERPT]
        yield _note("beyond_max_length", f"the record is dropped whole, not cut; beyond train.max_length is {cut!r}")


def _eaten(record: Record, rendered: str) -> Iterator[Note]:
    """Which part of the answer is gone; a template that strips <think> eats its beginning."""
    reply = record.reply.strip()
    kept = next((reply[start:] for start in range(len(reply)) if reply[start:] in rendered), "")
    gone = reply[: len(reply) - len(kept)]
    shown = gone if len(gone) <= _EXCERPT else f"{gone[:_EXCERPT]}..."
    yield _note("eaten", f"the template leaves out {len(gone):,} of {len(reply):,} letters: {shown!r}")
    rationale = (record.rationale or "").strip()
    if rationale and rationale in reply and rationale not in rendered:
        yield _note("rationale_eaten", "the rationale is among them")


def _rendered(record: Record, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return render(tokenizer, [*record.prompt, *record.completion], add_generation_prompt=False)


def _note(code: str, text: str) -> Note:
    return {"code": code, "text": text}


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], trained: bool) -> list[dict[str, Any]]:
    texts = texts_of(tokenizer, ids)
    return [{"id": id_, "text": text, "trained": trained} for id_, text in zip(ids, texts, strict=True)]


def _asked(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": id_, "text": text} for id_, text in zip(ids, texts_of(tokenizer, ids), strict=True)]


def texts_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token. A letter that is cut into several tokens stands whole at its last one."""
    try:
        bytes_of = bytes_of_tokens(tokenizer)
    except ModelError:
        return [tokenizer.decode([id_]) for id_ in ids]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(bytes_of(id_), final=place == len(ids)) for place, id_ in enumerate(ids, start=1)]

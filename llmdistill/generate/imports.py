"""The mode `import`: answers that are there already, the user's own teacher outputs. No model is asked.

A row is one answer, in one of these forms (the first that fits counts):

- `prompt` and `completion`, each a text or a list of messages;
- `instruction`, perhaps `input`, and `output`, as in Alpaca;
- `messages`, a list of `role` (system, user, assistant) and `content`;
- `conversations`, a list of `from` (system, human, gpt) and `value`, as in ShareGPT.

The last message of the assistant is the completion and what stands before it is the prompt, so of a conversation
the last turn is trained on. `prompts.fields` names other columns. The gold answer is in `reference` or the column
that is named for it, never in a column that usually holds answers. A row may also have `model` (who answered),
`finish_reason`, `licence`, and `system`, the system's message where the prompt has none. The assistant's
`reasoning_content`, `reasoning` or `thinking` is the rationale where the answer itself has none.

Rows with the same prompt are samples of it. A prompt is held out with all its samples: the first one stands for it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

from llmdistill.config import Fields, Pipeline, Prompts
from llmdistill.generate.prompts import STAGE, PromptSet, check_usable, is_held_out, read_file
from llmdistill.generate.replies import read_reply
from llmdistill.record import Message, Record, Reject, Source, TeacherInfo, record_id
from llmdistill.rows import (
    BadRowError,
    checked_message,
    checked_prompt,
    first_present,
    has_surrogate,
    no_prompt,
    reference_of,
    with_input,
)
from llmdistill.run.digest import Parts
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import Outcome, Stage, read_shards
from llmdistill.templates import TeacherTemplate, load_template

_FORMS = "prompt and completion, messages, conversations, or instruction and output"
_PROMPT_NAMES = ("prompt", "instruction", "messages", "conversations", "question")
_REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")
_SPEAKERS = {"human": "user", "gpt": "assistant"}
_CUT = ("length", "max_tokens")
_REFUSED = ("refused", "refusal", "content_filter")


class Imported:
    """Reads imported answers through the template, as if the teacher had just given them."""

    asked: Parts = {}

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.template, _ = load_template(pipeline.teacher_template, TeacherTemplate)

    def run(self, stage: Stage) -> Manifest:
        """Read every answer of the pool."""
        return stage.finish(stage.run_shards(read_shards(self.pipeline.run_path, STAGE), self.read))

    def read(self, records: list[Record]) -> Outcome:
        """What became of the records of one shard."""
        outcome = Outcome()
        for record in records:
            read = self._read(record)
            if isinstance(read, Reject):
                outcome.rejected.append(read)
            else:
                outcome.kept.append(read)
        return outcome

    def _read(self, record: Record) -> Record | Reject:
        said = json.loads(record.meta).get("imported", {})
        model = said.get("model") or self.pipeline.generate.imported_from or "unknown"
        ended = said.get("finish_reason", "unknown")
        record = replace(record, teacher=TeacherInfo(model, None, "", ended, 0, 0))
        if ended in _REFUSED:
            return Reject(record, "generate", ended, "says the imported row")
        cut = "cut at its longest, says the imported row" if ended == "length" else ""
        reasoning = said.get("reasoning", "")
        return read_reply(record, record.reply, self.pipeline.generate, self.template, reasoning, cut)


def read_imports(settings: Prompts) -> PromptSet:
    """Read a file of answers and hold out a part of its prompts.

    Which prompts are held out does not depend on how many samples they have. Answers to a held-out prompt beyond
    the first are rejects.

    Raises:
        InputError: no row can be used.
    """
    found, rows = PromptSet(), _Rows(settings)
    if settings.held_out_path:
        found.held_out = read_file(settings.held_out_path, settings, found, rows.held_out)
    fraction = 0.0 if settings.held_out_path else settings.held_out
    for record in read_file(settings.path, settings, found, rows.answer)[: settings.limit]:
        first = record_id(record.prompt)
        if not is_held_out(first, fraction):
            found.pool.append(record)
        elif record.id == first:
            found.held_out.append(record)
        else:
            detail = f"its prompt is held out: {rows.places[first]}"
            found.rejects.append(Reject(record, STAGE, "held_out_sample", detail, rows.places[record.id]))
    check_usable(found, settings)
    return found


class _Rows:
    """Makes records of rows.

    Attributes:
        places: where a record stood, by its id.
    """

    def __init__(self, settings: Prompts) -> None:
        self.settings = settings
        self.places: dict[str, str] = {}
        self._num_samples: dict[str, int] = {}
        self._answers: dict[tuple[str, str], str] = {}
        self._held_out: set[str] = set()

    def held_out(self, row: dict[str, Any], source: Source, place: str) -> Record:
        """The record of a row of the held-out file, which need not have an answer."""
        record = self._new(row, source, place, is_complete=False)
        self._held_out.add(record.id)
        return record

    def answer(self, row: dict[str, Any], source: Source, place: str) -> Record:
        """The record of an answer, which is one more sample of its prompt."""
        return self._new(row, source, place, is_complete=True)

    def _new(self, row: dict[str, Any], source: Source, place: str, is_complete: bool) -> Record:
        prompt, message = split_turns(turns_of(row, self.settings.fields, is_complete), is_complete)
        prompt = checked_prompt(prompt, _text(row, "system") or self.settings.system)
        completion = [] if message is None else [_checked_answer(message)]
        first, text = record_id(prompt), completion[0]["content"] if completion else ""
        if (first, text) in self._answers:
            raise BadRowError("duplicate_answer", f"same as {self._answers[first, text]}")
        if first in self._held_out:
            raise BadRowError("held_out_sample", f"its prompt is held out: {self.places[first]}")
        sample = self._num_samples.get(first, 0)
        self._num_samples[first] = sample + 1
        id_ = record_id(prompt, sample)
        self._answers[first, text] = self.places[id_] = place
        if not source.licence and (licence := _text(row, "licence")):
            source = dataclasses.replace(source, licence=licence)
        reference = reference_of(row, self.settings.fields.reference, ("reference",))
        record = Record(id_, prompt, completion, reference=reference, source=source)
        return record.with_meta(sample=sample, imported=_said(row, message))


def turns_of(row: dict[str, Any], fields: Fields, is_complete: bool = True) -> list[Any]:
    """A row of any form as a list of messages, not checked yet.

    Args:
        is_complete: a prompt without an answer is refused.

    Raises:
        BadRowError: the row has none of the forms.
    """
    prompt, completion = _columns(row, fields)
    if prompt is None:
        raise no_prompt(row, (fields.prompt,) if fields.prompt else _PROMPT_NAMES)
    if completion is None and isinstance(prompt, str) and is_complete:
        raise BadRowError("no_completion", f"the forms are {_FORMS}; this row has {', '.join(map(str, row))[:200]}")
    turns = _turns(prompt, "user")
    if completion is None:
        return turns
    answer = _turns(completion, "assistant")
    if not isinstance(answer[-1], dict) or answer[-1].get("role") != "assistant":
        raise BadRowError("no_completion", "the last message of a completion is the assistant's")
    return turns + answer


def _columns(row: dict[str, Any], fields: Fields) -> tuple[Any, Any]:
    """(prompt, completion) as they stand in the row; a whole conversation is a prompt without a completion."""
    usual = ("completion", "output") if "instruction" in row else ("completion",)
    completion = first_present(row, fields.completion, usual)
    if completion is None and not fields.prompt:
        conversation = first_present(row, None, ("messages", "conversations"))
        if conversation is not None:
            return conversation, None
    prompt = first_present(row, fields.prompt, _PROMPT_NAMES)
    if not fields.prompt and isinstance(prompt, str) and prompt == row.get("instruction"):
        if row.get("history"):
            raise BadRowError("wrong_type", "history is not read: give the conversation as messages")
        prompt = with_input(prompt, row.get("input"))
    return prompt, completion


def _turns(value: Any, role: str) -> list[Any]:
    """A text or a list of messages, in ShareGPT's words or in chat's, as messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise BadRowError("wrong_type", "a prompt or a completion is text or a list of messages")
    if not value:
        raise BadRowError("empty_prompt" if role == "user" else "empty_completion")
    return [_turn(message) for message in value]


def _turn(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    speaker = message["from"]
    role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {**message, "role": role, "content": message.get("value")}


def split_turns(turns: list[Any], is_complete: bool = True) -> tuple[list[Any], Any]:
    """(messages of the prompt, the assistant's message) of a conversation.

    Args:
        is_complete: a conversation without an answer is refused; else the message is None for one that waits for it.
    """
    roles = [message.get("role") if isinstance(message, dict) else None for message in turns]
    if not is_complete and roles[-1] == "user":
        return turns, None
    if "assistant" not in roles:
        checked_prompt(turns, None)  # what else is wrong with it comes first
        raise BadRowError("no_completion", "no message is the assistant's")
    last = len(roles) - 1 - roles[::-1].index("assistant")
    return turns[:last], turns[last]


def _checked_answer(message: Any) -> Message:
    checked = checked_message(message)
    text = checked["content"].strip()
    if not text:
        raise BadRowError("empty_completion")
    return {"role": "assistant", "content": text}


def _said(row: dict[str, Any], message: Any) -> dict[str, str]:
    """What a row says about its answer besides the text."""
    ended = _text(row, "finish_reason")
    reasoning = next(filter(None, (_text(message or {}, name) for name in _REASONING_NAMES)), "")
    said = {
        "model": _text(row, "model"),
        "finish_reason": "length" if ended.casefold() in _CUT else ended,
        "reasoning": reasoning,
    }
    return {name: value for name, value in said.items() if value}


def _text(row: dict[str, Any], name: str) -> str:
    """A value that is usable as text; empty when there is none."""
    value = row.get(name)
    return value.strip() if isinstance(value, str) and not has_surrogate(value) else ""

"""The answers of a stage as a file of training data, in a form that other tools read; `generate.mode: import` too.

Beside the prompt and the completion a row has `reference` (the gold answer), `model` (who answered) and `licence`,
each null where it is not known.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.errors import UsageError
from llmdistill.record import Record
from llmdistill.run.files import replacing
from llmdistill.run.stage import inputs_of, read_all

STAGES = ("generate", "filter", "curate")
_SPEAKERS = {"user": "human", "assistant": "gpt"}
_ABOUT = ("reference", "model", "licence")
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

Row = dict[str, Any]


def _messages(record: Record) -> Row:
    return {"messages": [*record.prompt, *record.completion]}


def _prompt_completion(record: Record) -> Row:
    return {"prompt": record.prompt, "completion": record.completion}


def _alpaca(record: Record) -> Row:
    return {"instruction": record.prompt[-1]["content"], "input": "", "output": record.reply}


def _sharegpt(record: Record) -> Row:
    turns = [*record.prompt, *record.completion]
    return {"conversations": [{"from": _SPEAKERS.get(t["role"], t["role"]), "value": t["content"]} for t in turns]}


FORMS: dict[str, Callable[[Record], Row]] = {
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
"""What `--format` names."""

_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "messages": {"messages": _MESSAGES},
    "prompt-completion": {"prompt": _MESSAGES, "completion": _MESSAGES},
    "alpaca": {"instruction": pa.string(), "input": pa.string(), "output": pa.string()},
    "sharegpt": {"conversations": _TURNS},
}


def row_of(record: Record, form: str) -> Row:
    """A record in one of `FORMS`."""
    about = (record.reference, record.teacher and record.teacher.model, record.source.licence)
    return {**FORMS[form](record), **dict(zip(_ABOUT, about, strict=True))}


def records_of(run_dir: Path, stage: str, form: str) -> Iterator[Record]:
    """Records of a finished stage that are to be exported.

    Raises:
        UsageError: there is no such stage or form, or the form cannot hold the records.
        StageError: the stage is not finished.
    """
    if form not in FORMS:
        raise UsageError(f"there is no form {form}", where="--format", do=f"there are {', '.join(FORMS)}")
    if stage not in STAGES:
        raise UsageError(f"no answers of {stage} can be exported", where="--stage", do=f"there are {', '.join(STAGES)}")
    inputs_of(run_dir, stage)
    if form == "alpaca":
        _refuse_conversations(_records(run_dir, stage))
    return _records(run_dir, stage)


def _records(run_dir: Path, stage: str) -> Iterator[Record]:
    return read_all(run_dir, stage)


def _refuse_conversations(records: Iterable[Record]) -> None:
    unfit = sum(len(record.prompt) > 1 for record in records)
    if unfit:
        what = f"{unfit:,} of the records do not fit Alpaca's form: a system message, or several turns"
        raise UsageError(what, where="--format alpaca", do="take --format messages or --format sharegpt")


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a file of another kind, or one that is there already.

    Raises:
        UsageError: it cannot be written.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise UsageError(
            "unknown kind of file", where=path, do="end its name in .jsonl or .parquet, or give - for stdout"
        )
    if path.exists() and not overwrite:
        raise UsageError("this file exists already", where=path, do="choose another name, or add --force")


def write_file(records: Iterable[Record], form: str, path: Path) -> int:
    """Write records to a .jsonl or .parquet file by one atomic rename; gives their number."""
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            return _write_parquet(records, form, temporary)
        with open(temporary, "wb") as handle:
            return write_lines(records, form, handle)


def write_lines(records: Iterable[Record], form: str, handle: BinaryIO) -> int:
    """Write records as JSON Lines; gives their number."""
    num_rows = 0
    for record in records:
        text = json.dumps(row_of(record, form), ensure_ascii=False)
        handle.write(_on_one_line(text).encode("utf-8") + b"\n")
        num_rows += 1
    return num_rows


def _on_one_line(text: str) -> str:
    """JSON without the characters that some readers take for the end of a line."""
    return text.replace("\u0085", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _write_parquet(records: Iterable[Record], form: str, path: Path) -> int:
    schema = pa.schema({**_COLUMNS[form], **dict.fromkeys(_ABOUT, pa.string())})
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _batches(row_of(record, form) for record in records):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            num_rows += len(rows)
    return num_rows


def _batches(rows: Iterator[Row], size: int = 1_000) -> Iterator[list[Row]]:
    while batch := list(itertools.islice(rows, size)):
        yield batch

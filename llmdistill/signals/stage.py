"""The stage `signals`: the teacher reads the chosen answers once, and what it knows is on disk for every training.

<run>/signals/header.json             what the signals were made from
<run>/signals/part-00000.arrow ...    one row per record, see `store`
<run>/signals/rejects.parquet         records that cannot be trained on
<run>/signals/sharding.json           how the records are cut into shards, from the first process to the last

Shards hold records of like length, the longest first. A finished one is never made again; after a kill the rest
is made as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from llmdistill.config import Pipeline, Signals
from llmdistill.engines.examples import Example, encode_all
from llmdistill.engines.models import end_tokens_of, load_model, load_tokenizer
from llmdistill.engines.resume import find_weights, student_source
from llmdistill.errors import ConfigError, RejectsError
from llmdistill.record import Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, write_json
from llmdistill.run.manifest import Counts, Manifest, Usage
from llmdistill.run.progress import Progress, progress
from llmdistill.run.stage import Stage, begin, inputs_of, read_all
from llmdistill.signals.capture import by_length, capture, length_of
from llmdistill.signals.codec import Rows
from llmdistill.signals.cross import teachable
from llmdistill.signals.header import Header
from llmdistill.signals.store import HEADER, Store, finished_shards, shard_path, to_stored, write_shard
from llmdistill.signals.vocabulary import compare_models, require_shared
from llmdistill.templates import TeacherTemplate, load_template

NAME = "signals"
_SHARDING = "sharding.json"

Read = Callable[[Sequence[Example]], Iterable[tuple[str, Rows]]]
"""Has the teacher read examples; gives the rows of each by record id, in any order."""


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Store the teacher's distribution over the curated records.

    Raises:
        ConfigError: the pipeline does not ask for it.
        ModelError: teacher and student have other vocabularies.
        RejectsError: no record can be trained on.
    """
    settings, started = _checked(pipeline), time.monotonic()
    header = header_of(pipeline)
    parts: Parts = {
        **flatten(header.to_json(), "signals."),
        "signals.engine": settings.engine,
        "train.max_length": pipeline.train.max_length,
        **inputs_of(pipeline.run_path, "curate"),
    }
    stage = begin(pipeline.run_path, NAME, parts, guard=("signals.",), fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    examples, rejects = _examples(pipeline)
    reasons = stage.write_rejects(rejects)
    if not examples:
        raise RejectsError(f"no record can be trained on ({reasons})", where=stage.dir, do="raise train.max_length")
    shards = _shards(examples, _shard_records(stage, settings))
    _capture_all(pipeline, stage, header, shards)
    paths = [shard_path(stage.dir, index) for index in range(len(shards))]
    counts = Counts(len(examples) + len(rejects), len(examples), len(rejects), reasons=reasons)
    usage = Usage(len(examples), sum(map(_num_read, examples)), 0, round(time.monotonic() - started, 1))
    return stage.finish(counts, usage, _metrics(examples, paths), [*paths, stage.dir / HEADER])


def open_store(pipeline: Pipeline, examples: Sequence[Example] = ()) -> Store:
    """The stored signals that a training of this pipeline may use; everything it will read is checked.

    Args:
        examples: what is trained on.

    Raises:
        ChangedError: they were made from something else, or there are none for a record; says what differs.
        DamagedError: a file is missing, or not as it was written.
    """
    store = Store.open(pipeline.run_path / NAME, header_of(pipeline))
    store.check({example.record_id: example.target for example in examples})
    return store


def header_of(pipeline: Pipeline) -> Header:
    """What signals of this pipeline are made from.

    Raises:
        ConfigError: the pipeline does not ask for signals.
        ModelError: teacher and student have other vocabularies.
    """
    settings, teacher, student = _checked(pipeline), find_weights(pipeline.teacher), student_source(pipeline)
    tokenizer = load_tokenizer(student)
    bits = f" {pipeline.teacher.quantize}" if pipeline.teacher.quantize else ""
    return Header(
        teacher=teacher.name,
        teacher_revision=teacher.revision,
        tokenizer_sha256=_sha256(sorted(tokenizer.get_vocab().items())),
        chat_template_sha256=_sha256(tokenizer.chat_template),
        teacher_template_sha256=load_template(pipeline.teacher_template, TeacherTemplate)[1],
        vocab_size=require_shared(compare_models(teacher, student), teacher.name),
        mode=settings.mode,
        k=settings.k,
        draws=settings.draws,
        log_probs=settings.log_probs,
        temperature=pipeline.train.temperature,
        seed=pipeline.seed if settings.seed is None else settings.seed,
        dtype=pipeline.teacher.dtype + bits,
    )


def _checked(pipeline: Pipeline) -> Signals:
    """The section.

    Raises:
        ConfigError: there is none.
    """
    settings = pipeline.signals
    if settings is None:
        advice = "add a section signals, or train with the teacher in memory"
        raise ConfigError("this pipeline stores no signals", where="signals", do=advice)
    return settings


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _examples(pipeline: Pipeline) -> tuple[list[Example], list[Reject]]:
    """What the training will make of the same records."""
    source = student_source(pipeline)
    tokenizer = load_tokenizer(source)
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    records = list(read_all(pipeline.run_path, "curate"))
    ends, longest = end_tokens_of(source, tokenizer), pipeline.train.max_length
    examples, rejects = encode_all(records, tokenizer, ends, longest, template, stage=NAME)
    teacher = find_weights(pipeline.teacher)
    known, more = teachable(teacher, source, pipeline.train, examples, records, template, stage=NAME)
    return known, rejects + more


def _shards(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """The examples as the teacher is asked, like lengths together."""
    asked = sorted((example.as_asked() for example in examples), key=by_length)
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def _shard_records(stage: Stage, settings: Signals) -> int:
    """Records of a shard: what the process that began the stage was told."""
    path = stage.dir / _SHARDING
    if not path.exists():
        write_json(path, {"shard_records": settings.shard_records})
    return int(read_json(path)["shard_records"])


def _capture_all(pipeline: Pipeline, stage: Stage, header: Header, shards: Sequence[Sequence[Example]]) -> None:
    """Capture every shard that is not finished. One is packed and written while the next is captured."""
    finished = finished_shards(stage.dir, header)
    owed = [n for n, shard in enumerate(shards) if finished.get(n) != [example.record_id for example in shard]]
    if not owed:
        return
    total = sum(_num_read(example) for shard in shards for example in shard)
    done = total - sum(_num_read(example) for index in owed for example in shards[index])
    with _reader(pipeline, header) as read, ThreadPoolExecutor(1) as pool, progress("signals", total, done) as bar:
        writing: Future[None] | None = None
        for index in owed:
            rows = dict(_noted(read(shards[index]), shards[index], bar))
            if writing is not None:
                writing.result()
            writing = pool.submit(write_captured, stage.dir, index, header, shards[index], rows)
        if writing is not None:
            writing.result()


def write_captured(
    folder: Path, index: int, header: Header, shard: Sequence[Example], rows: Mapping[str, Rows]
) -> None:
    """Pack and write one shard, its records in their order, whatever order they were captured in."""
    targets = {example.record_id: example.target for example in shard}
    write_shard(folder, index, header, to_stored(header, targets, rows))
    failpoint("signals.after_shard")


@contextmanager
def _reader(pipeline: Pipeline, header: Header) -> Iterator[Read]:
    """The teacher, loaded for the duration of the block."""
    settings, teacher, source = _checked(pipeline), pipeline.teacher, find_weights(pipeline.teacher)
    if settings.engine == "vllm":
        from llmdistill.signals.capture_vllm import open_scorer

        with closing(open_scorer(teacher, source, settings)) as scorer:
            yield lambda shard: scorer.rows(shard, settings.k, header.vocab_size)
        return
    model = load_model(source, teacher.dtype, teacher.device, teacher.quantize)
    yield lambda shard: capture(model, shard, settings, header.vocab_size, header.temperature, header.seed)


def _noted(rows: Iterable[tuple[str, Rows]], shard: Sequence[Example], bar: Progress) -> Iterator[tuple[str, Rows]]:
    """The rows as they come, shown as tokens that are read."""
    lengths = {example.record_id: _num_read(example) for example in shard}
    for record_id, found in rows:
        failpoint("signals.after_record")
        bar.advance(lengths[record_id], tokens=lengths[record_id])
        yield record_id, found


def _num_read(example: Example) -> int:
    return length_of(example.as_asked())


def _metrics(examples: Sequence[Example], paths: Sequence[Path]) -> dict[str, Any]:
    """Tokens that have signals, and what those take on disk."""
    tokens, size = sum(len(example.target) for example in examples), sum(path.stat().st_size for path in paths)
    return {"shards": len(paths), "target_tokens": tokens, "bytes": size, "bytes_per_token": round(size / tokens, 2)}

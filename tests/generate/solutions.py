"""Teachers on 127.0.0.1 that say what real models have said, and pipelines that ask them."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from llmdistill.config import Api, Filter, Generate, Model, Pipeline, Price, Prompts, Student, Train, Verify
from llmdistill.generate.stage import read, run
from llmdistill.record import Record, Reject, from_row
from llmdistill.run.files import read_table
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import read_shards
from tests.engines.loopback import Answer, Seen, chat
from tests.runs import pipeline
from tests.tiny import REPO

FILE = REPO / "tests" / "data" / "gsm8k-model-solutions-sample.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
BY_QUESTION = {row["question"].strip(): row for row in ROWS}


def asked(seen: Seen) -> str:
    """The text of the last message."""
    return str(seen.body["messages"][-1]["content"])


class Solver:
    """Says the published solution of the model that is asked; the model `all` says those of all four in turn."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.lock = threading.Lock()

    def __call__(self, seen: Seen) -> Answer:
        row, model = BY_QUESTION[asked(seen).strip()], seen.body["model"]
        if model == "all":
            with self.lock:
                model = MODELS[self.turns[row["question"]] % len(MODELS)]
                self.turns[row["question"]] += 1
        return Answer(body=chat(row[model]["solution"]))


def served(url: str, name: str, **api: Any) -> Model:
    """A model that a server on loopback holds."""
    return Model(model=name, engine="openai", price=Price(input=1, output=1), api=Api(base_url=url, patience=20, **api))


def asking(
    folder: Path, url: str, rows: list[dict[str, str]], teacher: str, generate: dict[str, Any], **more: Any
) -> Pipeline:
    """A pipeline over these rows that asks a served teacher and checks numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    values: dict[str, Any] = {
        "prompts": Prompts(path=str(path), held_out=0.0),
        "teacher": served(url, teacher),
        "student": Student(model="no/student"),
        "train": Train(method="sft"),
        "generate": Generate(**{"template": "prompts/en/answer.yaml", "shard_size": 20, **generate}),
        "filter": Filter(judge=None, verify=Verify(kind="math")),
    }
    return pipeline(folder / "run", **{**values, **more})


def gsm8k() -> list[dict[str, str]]:
    """The questions with their published answers."""
    return [{"prompt": row["question"], "reference": row["ground_truth"]} for row in ROWS]


def changed(settings: Pipeline, **generate: Any) -> Pipeline:
    """The pipeline with other settings of `generate`."""
    values = {name: getattr(settings.generate, name) for name in Generate.model_fields} | generate
    return settings.model_copy(update={"generate": Generate(**values)})


def made(settings: Pipeline, **flags: Any) -> Manifest:
    """Both stages done."""
    read(settings)
    return run(settings, **flags)


def kept(settings: Pipeline) -> list[Record]:
    return [record for shard in read_shards(settings.run_path, "generate") for record in shard]


def rejects(settings: Pipeline) -> list[Reject]:
    rows = read_table(settings.run_path / "generate" / "rejects.parquet").to_pylist()
    return [Reject(from_row(row), **row["reject"]) for row in rows]


def everything(settings: Pipeline) -> dict[str, tuple[Record, str]]:
    """Record id to the record and why it was dropped, empty for kept ones; fails on a record that is there twice."""
    pairs = [(record.id, (record, "")) for record in kept(settings)]
    pairs += [(reject.record.id, (reject.record, reject.reason)) for reject in rejects(settings)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def by_question(settings: Pipeline) -> dict[str, list[tuple[Record, str]]]:
    found: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for record, reason in everything(settings).values():
        found[record.question].append((record, reason))
    return found


def meta(record: Record) -> dict[str, Any]:
    return json.loads(record.meta)


def last_number(solution: str) -> str | None:
    """What a published solution states after `A:`, without separators and final zeros; None if it is no number."""
    stated = re.findall(r"^A: ?(.*)$", solution, re.MULTILINE)
    number = re.sub(r"[$,\s]|\.0+$", "", stated[-1]) if stated else ""
    return number if re.fullmatch(r"-?[0-9.]{1,20}", number) else None

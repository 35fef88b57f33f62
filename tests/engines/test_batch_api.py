"""What a batch is made of, and how it is kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.batch_api import BatchEngine, read_row
from llmdistill.engines.batch_shard import MOST_BYTES, Shard, batch_line, custom_id_of, first_lines, read_shards
from llmdistill.engines.retry import Verdict
from llmdistill.errors import ConfigError, DamagedError

REQUEST = Request("r1", [{"role": "user", "content": "질문"}], Sampling(max_new_tokens=4))
BODY = {"model": "m", "messages": [{"role": "user", "content": "질문"}]}
REPLY = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def lines(count: int, size: int = 10) -> list[tuple[str, bytes]]:
    return [(f"c{number}", batch_line(f"c{number}", {"filler": "x" * size})) for number in range(count)]


def row(response: Any = None, error: Any = None) -> dict[str, Any]:
    return {"id": "x", "custom_id": "c", "response": response, "error": error}


def test_a_name_is_short_and_the_same_for_the_same_question() -> None:
    turned = dict(reversed(BODY.items()))
    assert custom_id_of(REQUEST, BODY) == custom_id_of(REQUEST, turned)
    assert len(custom_id_of(Request("x" * 500, [], None), BODY)) <= 64


@pytest.mark.parametrize("other", [(Request("r2", [], None), BODY), (REQUEST, {**BODY, "model": "n"})])
def test_another_question_has_another_name(other: tuple[Request, dict[str, Any]]) -> None:
    assert custom_id_of(*other) != custom_id_of(REQUEST, BODY)


def test_a_batch_holds_no_more_requests_than_asked_for_and_than_allowed() -> None:
    assert len(first_lines(lines(30), 7)) == 7
    assert len(first_lines(lines(3), 7)) == 3
    assert len(first_lines(((str(number), b"{}\n") for number in range(60_000)), 100_000)) == 50_000


def test_a_batch_holds_no_more_bytes_than_allowed() -> None:
    long = b"x" * (MOST_BYTES // 3)
    assert len(first_lines([(str(number), long) for number in range(9)], 100)) == 3


def test_a_batch_holds_at_least_one_request() -> None:
    assert len(first_lines([("c", b"x" * (MOST_BYTES + 1))], 100)) == 1


def test_a_shard_is_read_back_as_it_was_noted(tmp_path: Path) -> None:
    shard = Shard.create(tmp_path, 2, lines(3))
    shard.note(input_file_id="file-1")
    shard.note(batch_id="batch_1")
    (found,) = read_shards(tmp_path)
    assert (found.input_file_id, found.batch_id, found.attempt) == ("file-1", "batch_1", 2)
    assert found.custom_ids == ["c0", "c1", "c2"] and found.key == shard.key
    assert shard.is_new and not found.is_new and not found.is_fetched


def test_shards_come_in_the_order_of_their_attempts(tmp_path: Path) -> None:
    for attempt in (2, 10, 1):
        Shard.create(tmp_path, attempt, lines(1))
    assert [shard.attempt for shard in read_shards(tmp_path)] == [1, 2, 10]


def test_a_half_written_shard_is_none(tmp_path: Path) -> None:
    shard = Shard.create(tmp_path, 1, lines(1))
    shard.input_path.rename(shard.dir / ".requests.jsonl.tmp")
    assert read_shards(tmp_path) == [] and not shard.dir.exists()


def test_damaged_requests_are_named(tmp_path: Path) -> None:
    shard = Shard.create(tmp_path, 1, lines(2))
    shard.input_path.write_bytes(shard.input_path.read_bytes()[:-20])
    with pytest.raises(DamagedError, match="requests.jsonl"):
        read_shards(tmp_path)


def test_damaged_answers_are_told_from_whole_ones(tmp_path: Path) -> None:
    shard = Shard.create(tmp_path, 1, lines(1))
    good = json.dumps(row())
    shard.answers_path.write_text(f'{good}\n{good[:10]}\n\n[]\n{{"custom_id": 3}}\n\x00\n{"[" * 5000}\n{good}')
    assert [found is not None for found in shard.rows()] == [True, False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("found", "kind", "reason"),
    [
        (row({"status_code": 429, "body": {}}), "retry", "rate_limit"),
        (row({"status_code": 500, "body": None}), "retry", "server_error"),
        (row({"status_code": 400, "body": {"error": {"message": "no"}}}), "reject", "refused"),
        (row({"status_code": 400, "body": {"error": {"code": "context_length_exceeded"}}}), "reject", "too_long"),
        (row({"status_code": 401, "body": {}}), "stop", "no_access"),
        (row({"status_code": 200, "body": {"choices": []}}), "retry", "malformed_reply"),
        (row({"status_code": "200", "body": REPLY}), "retry", "malformed_reply"),
        (row(error={"code": "batch_expired", "message": "too late"}), "retry", "unanswered"),
        (row(), "retry", "unanswered"),
        (row("?", "?"), "retry", "unanswered"),
    ],
)
def test_a_line_without_an_answer_is_classified_like_a_call(found: dict[str, Any], kind: str, reason: str) -> None:
    verdict = read_row(found, REQUEST)
    assert isinstance(verdict, Verdict)
    assert (verdict.kind, verdict.reason) == (kind, reason)


def test_a_line_with_an_answer_is_read() -> None:
    found = read_row(row({"status_code": 200, "body": REPLY}), REQUEST)
    assert isinstance(found, Completion)
    assert (found.id, found.text, found.usage_known) == ("r1", "yes", False)


def test_a_missing_key_is_said_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        BatchEngine.open(Model(model="m", engine="openai"), tmp_path / "batches")


def test_no_request_needs_no_server(tmp_path: Path) -> None:
    settings = Model.model_validate({"model": "m", "engine": "openai", "api": {"base_url": "http://127.0.0.1:9/v1"}})
    engine = BatchEngine.open(settings, tmp_path / "batches")
    assert list(engine.complete([])) == [] and engine.status() == ""
    engine.close()

"""Asking only for what is owed, within the budget, without losing an answer that was paid for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmdistill.config import Budget, Model
from llmdistill.engines.base import Request, Sampling
from llmdistill.engines.chat import prompt_bound
from llmdistill.engines.resume import LazyEngine, answer_of, ask, complete_all, find, usage_of
from llmdistill.errors import BudgetError, ConfigError, Interrupted, LlmdistillError
from llmdistill.run.journal import Journal
from llmdistill.run.signals import stopping_in_order
from tests.engines.loopback import Answer, chat, serving
from tests.faults.api import FakeTeacher
from tests.faults.conftest import wait_until
from tests.faults.fake_teacher import COMPLETION_TOKENS, answer_to
from tests.tiny import REPO

MOST = 20
SAMPLING = Sampling(max_new_tokens=MOST)


class Desk:
    """A run directory and a stage that asks."""

    def __init__(self, folder: Path, url: str, price: dict[str, float] | None = None, **api: Any) -> None:
        usual = {"base_url": url, "max_concurrency": 8, "patience": 20}
        values = {"model": "fake", "engine": "openai", "price": price, "api": {**usual, **api}}
        self.settings, self.folder = Model.model_validate(values), folder
        self.path = folder / "generate" / "journal" / "x.jsonl"

    def engine(self, **limits: Any) -> LazyEngine:
        budget = Budget(**limits)
        return LazyEngine(self.settings, find(self.settings), self.folder, self.path.parent, budget)

    def ask(self, requests: Iterable[Request], total: int = 100, **limits: Any) -> dict[str, Any]:
        with Journal(self.path) as journal:
            return ask(requests, journal, self.engine(**limits), "generate", total)

    def rows(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        with Journal(self.path) as journal:
            return {row["key"]: row for row in journal.rows()}


@pytest.fixture
def desk(tmp_path: Path, teacher: FakeTeacher) -> Desk:
    return Desk(tmp_path, teacher.url)


def requests(num: int) -> list[Request]:
    return [Request(f"r{n}", [{"role": "user", "content": f"question {n}"}], SAMPLING) for n in range(num)]


def assert_right(desk: Desk, asked: list[Request]) -> None:
    found = {key: row["text"] for key, row in desk.rows().items()}
    assert found == {each.id: answer_to(each.messages) for each in asked}


def alarm(teacher: FakeTeacher, seconds: float) -> None:
    """Send SIGALRM to this process some time after the teacher has answered a few."""
    wait_until(lambda: teacher.count()["num_answers"] >= 60)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGALRM)


def test_only_what_is_owed_is_asked(desk, teacher):
    asked = requests(60)
    desk.ask(asked[10:30])
    desk.ask(asked)
    desk.ask(asked)
    assert_right(desk, asked)
    assert teacher.count()["num_calls"] == 60


def test_a_finished_stage_opens_no_engine(desk, teacher):
    desk.ask(requests(5))
    opened = desk.engine()
    with Journal(desk.path) as journal:
        assert len(complete_all(requests(5), journal, opened, "generate")) == 5
    assert opened._engine is None


def test_requests_are_taken_as_there_is_room_for_them(desk, teacher):
    teacher.begin(latency=0.005)
    ahead = []

    def lazily() -> Iterator[Request]:
        for number, each in enumerate(requests(300)):
            ahead.append(number - teacher_answers[0])
            yield each

    teacher_answers = [0]
    with Journal(desk.path) as journal:
        append = journal.append

        def counting(key: str, **values: Any) -> None:
            teacher_answers[0] += 1
            append(key, **values)

        journal.append = counting  # type: ignore[method-assign]
        ask(lazily(), journal, desk.engine(), "generate", 300)
    assert teacher_answers[0] == 300 and max(ahead) <= 8 * 8


class TestBudget:
    @pytest.mark.parametrize("limit", [0, 50, 333, 900])
    def test_tokens_are_not_exceeded_and_all_that_fits_is_used(self, desk, teacher, limit):
        with pytest.raises(BudgetError):
            desk.ask(requests(100), max_tokens=limit)
        used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in desk.rows().values())
        bound = prompt_bound(requests(100)[99]) + MOST
        assert limit - bound <= used <= limit
        assert len(desk.rows()) == teacher.count()["num_calls"], "no call was made that is not in the journal"

    def test_dollars_are_not_exceeded_by_many_small_processes(self, tmp_path, teacher):
        desk = Desk(tmp_path, teacher.url, price={"input": 0.0, "output": 1e6})
        asked, rounds = requests(100), 0
        for limit in (25.0, 90.0, 91.0, 300.0, 799.0):
            with pytest.raises(BudgetError, match="the budget is reached"):
                desk.ask(asked, max_cost=limit)
            rounds += 1
            spent = COMPLETION_TOKENS * teacher.count()["num_calls"]
            assert spent <= limit and limit - spent <= MOST
        desk.ask(asked, max_cost=820.0)
        assert_right(desk, asked)
        assert teacher.count()["num_calls"] == 100
        assert sum(row["cost"] for row in desk.rows().values()) == pytest.approx(100 * COMPLETION_TOKENS)

    def test_another_stage_of_the_same_run_has_less_left(self, desk, teacher):
        desk.ask(requests(10), max_tokens=10_000)
        used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in desk.rows().values())
        other = Desk(desk.folder, teacher.url)
        other.path = desk.folder / "filter" / "journal" / "y.jsonl"
        with pytest.raises(BudgetError, match=f"{used:,} of {used + 10:,} tokens"):
            other.ask(requests(10), max_tokens=used + 10)
        assert not other.rows()

    def test_replies_that_cannot_be_read_are_charged_so_that_only_the_tries_in_flight_go_beyond(
        self, tmp_path, teacher
    ):
        teacher.begin(rules=[{"kind": "empty_choices"}])
        desk = Desk(tmp_path, teacher.url, price={"input": 0.0, "output": 1e6})
        with pytest.raises(BudgetError):
            desk.ask(requests(30), max_cost=10 * MOST)
        assert teacher.count()["num_calls"] <= 10 * 4

    def test_a_limit_in_dollars_needs_a_price(self, tmp_path):
        with serving(lambda _: Answer(200, chat("x"))) as server:
            desk = Desk(tmp_path, server.url)
            desk.settings = desk.settings.model_copy(
                update={"api": desk.settings.api.model_copy(update={"base_url": "https://example.invalid/v1"})}
            )
            with pytest.raises(ConfigError, match="the price is unknown"):
                desk.ask(requests(1), max_cost=5.0)
            assert not server.seen


class TestWhatIsWritten:
    def test_an_answer_is_the_same_from_the_journal(self, desk):
        asked = requests(3)
        with Journal(desk.path) as journal:
            first = complete_all(asked, journal, desk.engine(), "generate")
        with Journal(desk.path) as journal:
            assert complete_all(asked, journal, desk.engine(), "generate") == first
            assert answer_of("r0", journal, {}) == first["r0"]

    def test_records_without_an_answer_are_not_journalled_and_owed_again(self, desk, teacher):
        teacher.begin(rules=[{"kind": "empty_choices", "match": "question 1"}])
        failed = desk.ask(requests(5))
        assert set(failed) == {"r1"} and failed["r1"].finish_reason == "failed"
        assert set(desk.rows()) == {"r0", "r2", "r3", "r4"}
        teacher.begin()
        assert desk.ask(requests(5)) == {}
        assert_right(desk, requests(5))

    def test_a_cost_that_nobody_knows_is_none_and_never_nothing(self, desk, teacher):
        desk.ask(requests(2))
        with Journal(desk.path) as journal:
            assert usage_of(journal, ["r0", "r1"], 1.0).cost == 0.0, "a server on this machine costs nothing"
            row = {**journal["r0"], "cost": None}
            journal.append("r2", **{key: value for key, value in row.items() if key != "key"})
            usage = usage_of(journal, ["r0", "r1", "r2", "not there"], 2.0)
        assert usage.cost is None and usage.requests == 3 and usage.completion_tokens == 3 * COMPLETION_TOKENS

    def test_an_address_that_cannot_be_used_is_refused_before_it_is_part_of_a_digest(self, tmp_path):
        for url in ("https://user:hunter2@example.com/v1", "https://example.com/v1?key=hunter2", "http://[bad"):
            desk = Desk(tmp_path, url)
            with pytest.raises(ConfigError) as caught:
                find(desk.settings)
            assert "hunter2" not in str(caught.value)


class TestStopping:
    def test_answers_in_flight_are_kept_when_a_signal_comes(self, tmp_path, teacher):
        """Wherever this thread is: waiting, pricing, journalling, showing the progress.

        One instant is open: an exception that a signal handler raises inside a library's callback is swallowed there.
        """
        lost = []
        for trial in range(6):
            teacher.begin(latency=0.03)
            desk = Desk(tmp_path / str(trial), teacher.url, max_concurrency=48)
            with pytest.raises(Interrupted), stopping_in_order():
                signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGINT))
                threading.Thread(target=alarm, args=(teacher, 0.0237 * trial)).start()
                desk.ask(requests(3000), total=3000)
            time.sleep(0.1)
            paid = teacher.log().paid
            assert set(paid.values()) == {1}
            lost.append(sum(paid.values()) - len(desk.rows()))
        assert sorted(lost)[:-1] == [0] * 5 and 0 <= max(lost) <= 48

    def test_an_error_while_an_answer_is_written_ends_the_asking(self, desk, teacher):
        teacher.begin(latency=0.01)
        with Journal(desk.path) as journal:
            journal.append = lambda *_, **__: 1 / 0  # type: ignore[method-assign,assignment]
            with pytest.raises(ZeroDivisionError):
                ask(requests(10_000), journal, desk.engine(), "generate", 10_000)
            assert not [each for each in threading.enumerate() if each.name == "llmdistill-api"]

    def test_a_kill_loses_at_most_what_was_in_flight_and_one_group(self, tmp_path, teacher):
        teacher.begin(latency=0.01)
        program = (
            "import sys; from pathlib import Path; from tests.engines.test_resume import Desk, requests\n"
            "Desk(Path(sys.argv[1]), sys.argv[2]).ask(requests(400), 400)"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPO), "LLMDISTILL_FAILPOINT": "engine.after_answer:100"}
        command = [sys.executable, "-c", program, str(tmp_path), teacher.url]
        assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 137
        desk = Desk(tmp_path, teacher.url)
        kept, paid = len(desk.rows()), sum(teacher.log().paid.values())
        assert kept >= 100 - 32 and paid - kept <= 32 + 8 + 8
        desk.ask(requests(400))
        assert_right(desk, requests(400))


def test_requests_that_raise_end_with_their_own_error(desk):
    def broken() -> Iterator[Request]:
        yield from requests(3)
        raise LlmdistillError("a row that cannot be read", where="x.jsonl:4")

    with pytest.raises(LlmdistillError, match="cannot be read"):
        desk.ask(broken())
    assert set(desk.rows()) <= {"r0", "r1", "r2"}


def test_progress_goes_on_from_what_was_done(desk, capsys, monkeypatch):
    from llmdistill.run import progress

    desk.ask(requests(10), total=20)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    desk.ask(requests(20), total=20)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("generate: ")]
    assert [line.split(",")[0] for line in lines] == [f"generate: {number}/20" for number in range(11, 21)]


def test_progress_counts_only_answers_to_what_is_asked_now(desk, capsys, monkeypatch):
    from llmdistill.run import progress

    asked = requests(40)
    desk.ask(asked[10:20] + asked[30:])  # ten that are asked for again later, ten that are not
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    desk.ask(asked[:25], total=25)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("generate: ")]
    assert lines[-1].startswith("generate: 25/25")
    assert not [line for line in lines if "-" in line]

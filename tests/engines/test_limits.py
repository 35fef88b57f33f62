"""The limits against slow references, and a pool in which nobody is forgotten."""

from __future__ import annotations

import asyncio
import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.config import Api
from llmdistill.engines.endpoint import Endpoint
from llmdistill.engines.limits import Bucket, Gate, Pool


def gate(now: float = 0.0, **api: object) -> Gate:
    return Gate(Endpoint("http://127.0.0.1/v1"), Api.model_validate(api), now)


def pool(num: int = 1, **api: object) -> Pool:
    return Pool([Endpoint(f"http://127.0.0.1:{port}/v1") for port in range(1, num + 1)], Api.model_validate(api))


class TestAdaptingLimit:
    events = st.lists(st.sampled_from(["answer", "congested"]) | st.floats(0, 3), max_size=150)

    @settings(max_examples=300, deadline=None)
    @given(most=st.integers(1, 1000), events=events, seed=st.integers(0, 99))
    def test_it_is_additive_increase_and_multiplicative_decrease(self, most, events, seed):
        """Against the definition: +1 step per `limit` answers, one halving for all calls begun before the last."""
        rng, tested = random.Random(seed), gate(max_concurrency=most)
        now, limit, decreased = 0.0, float(most), 0.0
        step = max(1.0, most / 32)
        for event in events:
            if event == "answer":
                tested.answered()
                limit = min(float(most), limit + step / limit)
            elif event == "congested":
                started = now - rng.choice([0.0, 0.5, 2.0])
                tested.congested(started, now)
                if started >= decreased:
                    limit, decreased = max(1.0, limit / 2), now
            else:
                now += event
            assert tested.limit == pytest.approx(limit) and 1.0 <= tested.limit <= most

    def test_a_burst_of_refusals_of_one_round_halves_it_once(self):
        tested = gate(max_concurrency=64)
        for _ in range(64):
            tested.congested(started=1.0, now=2.0)
        assert tested.limit == 32 and tested.num_limited == 64

    def test_after_the_worst_it_is_back_in_about_thirty_two_rounds(self):
        tested = gate(max_concurrency=256)
        for second in range(20):
            tested.congested(second, second)
        assert tested.limit == 1.0
        rounds = 0
        while tested.limit < 256:
            rounds += 1
            for _ in range(int(tested.limit)):
                tested.answered()
        assert rounds <= 40

    def test_it_holds_calls_back_and_lets_them_go(self):
        tested = gate(max_concurrency=2)
        tested.start(1)
        tested.start(1)
        assert tested.wait(0.0) == math.inf
        tested.end()
        assert tested.wait(0.0) == 0.0


class TestBucket:
    @settings(max_examples=300, deadline=None)
    @given(
        per_minute=st.integers(1, 100_000),
        steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 5000), st.floats(0, 1)), max_size=80),
    )
    def test_no_more_than_rate_times_time_plus_burst_goes_through(self, per_minute, steps):
        """What was taken before the last call; that one may run into debt, whatever its size. Refunds count as such."""
        now, rate = 0.0, per_minute / 60
        bucket, taken = Bucket(per_minute, now), 0.0
        for seconds, amount, unused in steps:
            now += seconds
            if bucket.wait(now) <= 0:
                assert taken <= rate * now + max(1.0, rate) + 1e-6 * (1 + taken)
                bucket.take(amount)
                bucket.take(-amount * unused)
                taken += amount * (1 - unused)

    @settings(max_examples=200, deadline=None)
    @given(per_minute=st.integers(1, 10_000), amounts=st.lists(st.floats(0.1, 500), min_size=1, max_size=30))
    def test_waiting_as_long_as_it_says_is_enough(self, per_minute, amounts):
        now = 0.0
        bucket = Bucket(per_minute, now)
        for amount in amounts:
            wait = bucket.wait(now)
            assert 0 <= wait < math.inf
            now += wait
            assert bucket.wait(now) <= 1e-6
            bucket.take(amount)

    def test_a_clock_that_stands_still_or_no_limit_at_all(self):
        bucket = Bucket(None, 5.0)
        bucket.take(1e12)
        assert bucket.wait(5.0) == bucket.wait(5.0) == 0.0


@given(times=st.lists(st.floats(-10, 100), min_size=1, max_size=10), now=st.floats(0, 100))
def test_nothing_starts_before_the_latest_time_that_was_asked_for(times, now):
    tested = gate()
    for until in times:
        tested.block(until)
    assert max(tested.wait(now), 0.0) == pytest.approx(max(0.0, *times, 0.0) - now if max(times) > now else 0.0)
    assert tested.blocked_for(now) == pytest.approx(max(0.0, max(times) - now))


class TestPool:
    @pytest.mark.parametrize("num_gates", [1, 3])
    def test_many_tasks_all_get_through_and_no_limit_is_exceeded(self, num_gates):
        """No wake-up is lost: with limits that change all the time, every one of thousands of tasks ends."""
        tested, rng, peaks, done = pool(num_gates, max_concurrency=5), random.Random(1), [], []

        async def one(number: int) -> None:
            for _ in range(3):
                entered = await tested.enter(10)
                peaks.append(entered.in_flight - int(entered.limit))
                try:
                    await asyncio.sleep(rng.choice([0, 0, 0.0005]))
                    if rng.random() < 0.1:
                        entered.congested(time.monotonic(), time.monotonic())
                    else:
                        entered.answered()
                finally:
                    tested.leave(entered)
            done.append(number)

        async def every() -> None:
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                for number in range(700):
                    group.create_task(one(number))

        asyncio.run(every())
        assert sorted(done) == list(range(700)) and max(peaks) <= 0
        assert all(each.in_flight == 0 for each in tested.gates)

    def test_tasks_that_are_cancelled_leave_no_one_waiting(self):
        tested = pool(max_concurrency=2)

        async def use() -> None:
            entered = await tested.enter(1)
            try:
                await asyncio.sleep(0.001)
            finally:
                tested.leave(entered)

        async def every() -> int:
            rng = random.Random(2)
            tasks = [asyncio.create_task(use()) for _ in range(400)]
            while not all(task.done() for task in tasks):
                rng.choice(tasks).cancel()
                await asyncio.sleep(0.0005)
            return sum(not task.cancelled() for task in tasks)

        assert asyncio.run(asyncio.wait_for(every(), 30)) > 0
        assert tested.gates[0].in_flight == 0

    def test_work_goes_where_there_is_room(self):
        tested = pool(3, max_concurrency=10)

        async def enter_all() -> list[int]:
            entered = [await tested.enter(1) for _ in range(15)]
            return [entered.count(each) for each in tested.gates]

        assert asyncio.run(enter_all()) == [5, 5, 5]

    def test_a_blocked_server_gets_nothing_while_another_is_free(self):
        tested = pool(2, max_concurrency=50)
        tested.gates[0].block(time.monotonic() + 60)

        async def enter_all() -> set[Gate]:
            return {await tested.enter(1) for _ in range(20)}

        assert asyncio.run(asyncio.wait_for(enter_all(), 10)) == {tested.gates[1]}

    def test_nobody_enters_before_a_block_ends(self):
        tested = pool(max_concurrency=20)
        until = time.monotonic() + 0.3
        tested.gates[0].block(until)

        async def enter_all() -> list[float]:
            async def one() -> float:
                await tested.enter(1)
                return time.monotonic()

            return list(await asyncio.gather(*(one() for _ in range(20))))

        assert min(asyncio.run(asyncio.wait_for(enter_all(), 10))) >= until

    def test_first_come_first_served(self):
        tested, order = pool(max_concurrency=1), []

        async def one(number: int) -> None:
            entered = await tested.enter(1)
            order.append(number)
            await asyncio.sleep(0.001)
            tested.leave(entered)

        async def every() -> None:
            await asyncio.gather(*(one(number) for number in range(50)))

        asyncio.run(every())
        assert order == sorted(order)

    def test_tokens_that_were_not_needed_are_given_back(self):
        tested = pool(tokens_per_minute=6000, max_concurrency=100)

        async def every() -> float:
            started = time.monotonic()
            for _ in range(20):
                tested.leave(await tested.enter(90), unused_tokens=89)
            return time.monotonic() - started

        assert asyncio.run(asyncio.wait_for(every(), 10)) < 2

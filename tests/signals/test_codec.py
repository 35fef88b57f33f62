"""Signals as bytes: what comes back, how exact it is, how large it is, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.signals.codec import DrawnRows, TopRows, decode, encode, encode_all, row_bytes
from tests.signals.rows import distributions, drawn_rows, header, log_softmax, some_rows, top_rows

KINDS = ("uint8", "float16", "float32")
SHAPES = st.tuples(st.integers(1, 7), st.integers(2, 200_000), st.integers(1, 200_000), st.integers(0, 2**32))


def random_rows(num_targets: int, vocab_size: int, k: int, seed: int) -> TopRows:
    """Rows in no order, some of whose tokens have no probability, some with a tail."""
    generator = np.random.default_rng(seed)
    ids = np.array([generator.choice(vocab_size, k, replace=False) for _ in range(num_targets)])
    logits = generator.normal(size=(num_targets, k + 1)) * generator.choice([0.01, 1, 8])
    logits[generator.random(logits.shape) < generator.choice([0, 0.3])] = -np.inf
    logits[:, 0] = 0.0
    if k == vocab_size:
        logits[:, k] = -np.inf
    log_probs = log_softmax(logits).astype(np.float32)
    return TopRows(ids, log_probs[:, :k], log_probs[:, k])


def in_order(rows: TopRows) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities, those of equal ids at the same place; tokens without probability get id -1."""
    ids = np.where(rows.log_probs > -np.inf, rows.ids, -1)
    order = np.argsort(ids, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rows.log_probs, order, 1)


def mass(rows: TopRows) -> np.ndarray:
    return np.exp(rows.log_probs.astype(np.float64)).sum(1) + np.exp(rows.tail_log_prob.astype(np.float64))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(KINDS))
def test_topk_rows_of_any_shape_come_back(shape: tuple[int, int, int, int], kind: str) -> None:
    num_targets, vocab_size, k, seed = shape
    k = min(k, vocab_size) if seed % 2 else min(k % 40 + 1, vocab_size)
    k = min(k, 3000)
    rows = random_rows(num_targets, vocab_size, k, seed)
    wanted = header(vocab_size=vocab_size, k=k, log_probs=kind)
    payload = encode(wanted, rows)
    found = decode(wanted, [payload], [num_targets])
    assert isinstance(found, TopRows) and len(payload) == num_targets * row_bytes(wanted)
    (ids, log_probs), (found_ids, found_log_probs) = in_order(rows), in_order(found)
    assert np.array_equal(ids, found_ids)
    assert all(len(set(row)) == k for row in found.ids.tolist()), "an id is twice in a row"
    assert np.abs(mass(found) - 1).max() < 1e-5
    if kind == "float32":
        assert np.array_equal(found_log_probs, log_probs) and np.array_equal(found.tail_log_prob, rows.tail_log_prob)
        return
    np.testing.assert_array_equal(np.isinf(found.tail_log_prob), np.isinf(rows.tail_log_prob))
    present = ids >= 0
    assert np.abs(found_log_probs[present] - log_probs[present]).max() < 0.15, "coarser than the largest step allows"
    assert np.abs(np.exp(found.tail_log_prob) - np.exp(rows.tail_log_prob)).max() < 2e-3


@pytest.mark.parametrize("vocab_size", [2, 257, 600])
def test_the_whole_distribution_in_float32_is_exact(vocab_size: int) -> None:
    exact = distributions(9, vocab_size).astype(np.float32)
    wanted = header(vocab_size=vocab_size, k=10**6, log_probs="float32")
    found = decode(wanted, [encode(wanted, top_rows(exact, vocab_size))], [9])
    dense = np.full_like(exact, np.nan)
    np.put_along_axis(dense, found.ids, found.log_probs, 1)
    assert np.array_equal(dense, exact) and np.isneginf(found.tail_log_prob).all()


@pytest.mark.parametrize("spread", [0.3, 2.0, 4.0])
def test_eight_bits_are_nearly_as_good_as_sixteen(spread: float) -> None:
    exact = distributions(40, 49_152, spread=spread)
    rows = top_rows(exact, 32)
    wanted = header(vocab_size=49_152, k=32)
    found = decode(wanted, [encode(wanted, rows)], [40])
    assert np.array_equal(found.ids, rows.ids)
    kl = (np.exp(rows.log_probs) * (rows.log_probs - found.log_probs)).sum(1)
    kl += np.exp(rows.tail_log_prob) * (rows.tail_log_prob - found.tail_log_prob)
    assert np.abs(kl).max() < 2e-5
    assert np.abs(rows.log_probs - found.log_probs).mean() < 4e-3


def test_a_token_as_certain_as_can_be_keeps_its_small_tail() -> None:
    log_probs = np.log(np.array([[1 - 3e-7, 1e-7, 1e-7]]))
    wanted = header(k=3)
    found = decode(wanted, [encode(wanted, TopRows(np.array([[5, 6, 7]]), log_probs, np.log([1e-7])))], [1])
    np.testing.assert_allclose(found.tail_log_prob, np.log(1e-7), rtol=1e-3)
    np.testing.assert_allclose(found.log_probs[0, 1:], np.log(1e-7), rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 400))
def test_draws_of_any_shape_come_back(shape: tuple[int, int, int, int], draws: int) -> None:
    num_targets, vocab_size, _, seed = shape
    rows = drawn_rows(distributions(num_targets, min(vocab_size, 500), seed % 99), draws, seed)
    rows = replace(rows, ids=np.where(rows.counts > 0, vocab_size - 1 - rows.ids % vocab_size, 0))
    wanted = header(mode="sampled", vocab_size=vocab_size, draws=draws)
    found = decode(wanted, [encode(wanted, rows)], [num_targets])
    assert isinstance(found, DrawnRows)
    assert np.array_equal(found.ids, rows.ids) and np.array_equal(found.counts, rows.counts)


def test_draws_take_less_than_48_bytes_where_the_teacher_is_as_certain_as_on_text() -> None:
    exact = np.concatenate(
        [distributions(1, 49_152, seed, spread) for seed, spread in enumerate(np.linspace(3, 12, 60))]
    )
    entropy = -(np.exp(exact) * exact).sum(1).mean()
    assert entropy > 1.44, "less certain than SmolLM2-135M-Instruct is on data/, on average"
    wanted = header(mode="sampled", vocab_size=49_152)
    assert len(encode(wanted, drawn_rows(exact, 50))) / 60 < 48


@pytest.mark.parametrize("mode", ["topk", "sampled"])
@pytest.mark.parametrize("vocab_size", [5, 600, 65_536])
def test_records_are_decoded_together_as_one_by_one(mode: str, vocab_size: int) -> None:
    wanted = header(mode=mode, vocab_size=vocab_size)
    records = [some_rows(wanted, number, seed=number) for number in (3, 1, 8)]
    payloads = encode_all(wanted, records)
    assert payloads == [encode(wanted, rows) for rows in records]
    together = decode(wanted, payloads, [3, 1, 8])
    start = 0
    for rows, payload in zip(records, payloads, strict=True):
        alone = decode(wanted, [payload], [len(rows.ids)])
        for name in alone.__slots__:
            own = getattr(alone, name)
            part = getattr(together, name)[start : start + len(own)]
            assert np.array_equal(part[:, : own.shape[1]] if own.ndim > 1 else part, own)
        start += len(rows.ids)


def spoiled(**changes: np.ndarray) -> TopRows:
    return replace(top_rows(distributions(2, 600), 4), **changes)


BAD_ROWS = {
    "not a number": spoiled(log_probs=np.full((2, 4), np.nan, np.float32)),
    "have mass 3": spoiled(log_probs=np.full((2, 4), np.log(0.75)), tail_log_prob=np.full(2, -np.inf)),
    "mass of a row is below 1": spoiled(log_probs=np.full((2, 4), -9.0), tail_log_prob=np.full(2, -9.0)),
    "no token with a probability": spoiled(log_probs=np.full((2, 4), -np.inf), tail_log_prob=np.zeros(2)),
    "token id 600 in a vocabulary of 600": spoiled(ids=np.array([[1, 2, 3, 600], [1, 2, 3, 4]])),
    "token id -1": spoiled(ids=np.array([[1, 2, 3, -1], [1, 2, 3, 4]])),
    "a token is twice": spoiled(ids=np.array([[1, 2, 3, 3], [1, 2, 3, 4]])),
    "4 tokens are kept": top_rows(distributions(2, 600), 5),
    "another mode": drawn_rows(distributions(2, 600), 50),
}


@pytest.mark.parametrize("message", BAD_ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_distributions_are_not_stored(message: str, kind: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(header(log_probs=kind), BAD_ROWS[message])


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([[1, 2]], [[30, 21]], "not 50 draws"),
        ([[1, 2, 3]], [[30, 0, 20]], "comes before"),
        ([[1, 2]], [[60, -10]], "not 50 draws"),
        ([[1, 600]], [[30, 20]], "token id 600"),
    ],
)
def test_draws_that_do_not_add_up_are_not_stored(ids: list, counts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(header(mode="sampled"), DrawnRows(np.array(ids), np.array(counts)))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=26, max_size=26), st.sampled_from(KINDS))
def test_bytes_of_any_kind_are_a_distribution_or_refused(data: bytes, kind: str) -> None:
    wanted = header(log_probs=kind)
    size = int(row_bytes(wanted))
    try:
        found = decode(wanted, [data[:size]], [1])
    except ValueError:
        return
    assert found.ids.max() < 600 and mass(found).max() < 1.02 and not np.isnan(found.log_probs).any()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 3))
def test_bytes_of_any_kind_are_draws_or_refused(data: bytes, num_targets: int) -> None:
    try:
        found = decode(header(mode="sampled"), [data], [num_targets])
    except ValueError:
        return
    assert found.ids.max() < 600 and (found.counts.sum(1) == 50).all()


@pytest.mark.parametrize("mode", ["topk", "sampled"])
@pytest.mark.parametrize("change", [-1, 1])
def test_bytes_for_other_numbers_of_targets_are_refused(mode: str, change: int) -> None:
    wanted = header(mode=mode)
    payload = encode(wanted, some_rows(wanted, 5))
    with pytest.raises(ValueError):
        decode(wanted, [payload], [5 + change])

"""Near duplicates: planted copies are found, look-alikes are not, and the index finds what all pairs find."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.curate.duplicates import band_rows, near_copies_of, near_duplicates, similarity
from llmdistill.curate.shingles import NUM_PERM, jaccard, normalise, signatures, views, words
from tests.curate.planted import COPIES, LOOKALIKES, Planted, korean_questions, plant
from tests.tiny import PROMPTS, REPO

SHARED = REPO.parent / "shared" / "data"


def prompts_of(path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").split("\n") if line]


def questions_of(path) -> list[str]:
    return [json.loads(line)["question"] for line in path.read_text("utf-8").split("\n") if line]


ENGLISH_TEXTS, KOREAN_TEXTS = prompts_of(PROMPTS)[:150], prompts_of(REPO / "data" / "korean" / "prompts.jsonl")


def by_all_pairs(texts: list[str], threshold: float) -> list[tuple[int, float] | None]:
    """The definition: greedy in order, most similar kept text, the earlier one of equals."""
    found: list[tuple[int, float] | None] = []
    kept: list[int] = []
    for index, text in enumerate(texts):
        similar = [(similarity(text, texts[other]), -other) for other in kept]
        best = max(similar, default=(-1.0, 0))
        if best[0] >= threshold:
            found.append((-best[1], best[0]))
        else:
            found.append(None)
            kept.append(index)
    return found


def as_pairs(matches) -> list[tuple[int, float] | None]:
    return [match and (match.index, match.similarity) for match in matches]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_real_prompts_give_what_all_pairs_give(threshold):
    texts = ENGLISH_TEXTS[:60] + KOREAN_TEXTS[:20]
    texts += [made.text for made in plant(texts, COPIES | LOOKALIKES, 4, 0)]
    assert as_pairs(near_duplicates(texts, threshold)) == by_all_pairs(texts, threshold)


# Planted


def local_pool() -> list[str]:
    data = REPO / "data"
    maths = [*(data / "gsm8k").glob("train*.jsonl"), *(data / "gsm8k").glob("test*.jsonl")]
    texts = [text for path in maths for text in _prompts_or_questions(path)]
    texts += prompts_of(PROMPTS) + KOREAN_TEXTS + korean_questions(300, 0)
    return list(dict.fromkeys(texts))


def _prompts_or_questions(path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return [row.get("prompt") or row["question"] for row in rows]


def shared_pool() -> list[str]:
    """5,000 records: instructions of 300 templates, arithmetic, common sense, Korean."""
    if not SHARED.exists():
        pytest.skip("the pool of 55,185 instructions is not at ../shared/data; it may not be shipped")
    rng = random.Random(0)
    stories = json.loads((SHARED / "svamp.json").read_text("utf-8"))
    parts = [
        (1900, _instructions()),
        (900, questions_of(SHARED / "gsm8k-train.jsonl")),
        (700, [f"{story['Body'].rstrip('. ')}. {story['Question']}" for story in stories]),
        (800, questions_of(SHARED / "cqa-cose-v1.0-train.jsonl")),
        (660, korean_questions(660, 0)),
        (40, KOREAN_TEXTS),
    ]
    texts = [text for size, pool in parts for text in rng.sample(sorted(set(pool)), size)]
    assert len(set(texts)) >= 4_990
    return list(dict.fromkeys(texts))


def _instructions() -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(SHARED / "t0-instructions.parquet")["prompt"].to_pylist()


def kept_aside_pool() -> list[str]:
    """5,000 other records, none of which the settings were found on."""
    known = set(shared_pool())
    rng = random.Random(11)
    parts = [
        (2300, _instructions()),
        (900, questions_of(SHARED / "gsm8k-test.jsonl")),
        (800, questions_of(SHARED / "cqa-cose-v1.0-dev.jsonl")),
        (1000, korean_questions(3000, 12)),
    ]
    texts = [text for size, pool in parts for text in rng.sample(sorted(set(pool) - known), size)]
    assert len(set(texts)) >= 4_990
    return list(dict.fromkeys(texts))


def found_of(pool: list[str], planted: list[Planted]) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """For each kind the share that names its original or another copy of it, and all other pairs that were named."""
    texts = pool + [made.text for made in planted]
    origins = [*range(len(pool)), *(made.index for made in planted)]
    kinds = [""] * len(pool) + [made.kind for made in planted]
    counts, right, others = Counter(kinds), Counter(), []
    for row, match in enumerate(near_duplicates(texts, 0.7)):
        if match is None:
            continue
        if row >= len(pool) and origins[row] == origins[match.index] and kinds[match.index] not in LOOKALIKES:
            right[kinds[row]] += 1
        if kinds[row] in LOOKALIKES or origins[row] != origins[match.index]:
            others.append((texts[row], texts[match.index]))
    return {kind: right[kind] / counts[kind] for kind in counts if kind}, others


@pytest.mark.parametrize("make_pool", [local_pool, shared_pool, kept_aside_pool])
def test_planted_copies_are_found_and_lookalikes_are_not(make_pool, record_property):
    pool = make_pool()
    # Copies that the pool holds by nature go first: what is named afterwards is planted, or it is a mistake.
    pool = [text for text, match in zip(pool, near_duplicates(pool, 0.7), strict=True) if match is None]
    planted = plant(pool, COPIES | LOOKALIKES, 150, 0)
    found, mistakes = found_of(pool, planted)
    copies = sum(round(found[kind] * 150) for kind in COPIES if kind in found)
    precision = copies / (copies + len(mistakes))
    record_property("found", {**found, "precision": precision})
    assert {kind for kind in COPIES if found[kind] < 0.95} == set(), found
    assert {kind for kind in LOOKALIKES if found[kind] > 0.1} == set(), found
    assert precision >= 0.98, mistakes


def test_planted_copies_of_korean_are_found():
    pool = KOREAN_TEXTS + korean_questions(150, 1)
    pool = [text for text, match in zip(pool, near_duplicates(pool, 0.7), strict=True) if match is None]
    found, mistakes = found_of(pool, plant(pool, COPIES, 100, 0))
    assert min(found.values()) >= 0.95, found
    assert len(mistakes) <= 7, mistakes


def test_questions_made_from_one_pattern_are_no_copies_of_each_other():
    questions = korean_questions(600, 2)
    assert sum(match is not None for match in near_duplicates(questions, 0.7)) <= 3


@pytest.mark.parametrize(
    "texts",
    [
        ["2+2", "2-2", "2*2", "2/2", "22"],
        ["3.14", "314", "-314", "$314"],
        ["x > y", "x < y", "x = y"],
        ["???", "🍎", "🍌", "🚗"],
        ["कि", "की", "कु"],
        ["가", "나", "다"],
        ["What is 12 / 3?", "What is 1 + 23?"],
        ["What is 345678 + 123456?", "What is 345678 - 123456?", "What is 123456 - 345678?"],
        ["안녕하세요?", "안녕히 가세요."],
        ["What is the capital city of France?", "What is the capital city of Spain?"],
        ["Which of these animals can fly over the sea?", "Which of these animals cannot fly over the sea?"],
        ["There is sugar in the tea that she drank.", "There is no sugar in the tea that she drank."],
        ["He gave three apples to each of the children.", "He gave four apples to each of the children."],
        ["Subtract 7 from 12 and say the result.", "Subtract 12 from 7 and say the result."],
        ["나는 어제 시장에서 사과를 먹었습니다.", "나는 어제 시장에서 사과를 안 먹었습니다."],
        ["사과가 12개 있으면 몇 명이 먹습니까?", "사과가 13개 있으면 몇 명이 먹습니까?"],
    ],
    ids=lambda texts: texts[0],
)
def test_texts_of_different_meaning_are_not_copies(texts):
    assert near_duplicates(texts, 0.7) == [None] * len(texts)


@pytest.mark.parametrize(
    ("text", "copy"),
    [
        ("What causes the tides in the sea?", "What cuases the tides in the sea?"),
        ("What causes the tides here?", "what causes the tidesh ere"),
        ("서울의 인구는 모두 몇 명입니까?", "서울의 인구가 모두 몇 명입니까?"),
        ("나는 사과를 좋아합니다.", "나는 사과 를 좋아 합니다"),
        ("나는 사과를 좋아합니다.", unicodedata.normalize("NFD", "나는 사과를 좋아합니다.")),
        ("What is 3 + 4?", "Ｗｈａｔ　ｉｓ　３　＋　４？"),
        ("Name a fruit, please.", "Na\u200bme a fr\u00aduit, please\ufeff."),
        ("Don't we need 1,000 eggs?", "Dont we need 1000 eggs"),
        ("If it rains, where do cats sleep?", "Where do cats sleep if it rains?"),
        ("3명이 사과 12개를 나누면, 한 명이 몇 개를 먹습니까?", "사과 12개를 3명이 나누면 한 명이 몇 개를 먹습니까?"),
    ],
)
def test_a_copy_is_found_in_a_short_text(text, copy):
    matches = near_duplicates([text, copy], 0.7)
    assert matches[1] is not None and matches[1].index == 0


def test_a_group_of_copies_keeps_its_first_and_all_name_it():
    text = ENGLISH_TEXTS[0]
    matches = near_duplicates([text, text + "!", text.upper(), "something else entirely"], 0.7)
    assert as_pairs(matches) == [None, (0, 1.0), (0, 1.0), None]


# Signatures


def test_a_signature_depends_on_its_text_alone():
    texts = ENGLISH_TEXTS + KOREAN_TEXTS + ["", "a", "\x00", "\ud800", "x" * 300_000, "e\u0301\u0327"]
    together = signatures(texts)
    assert together.shape == (len(texts), 2 * NUM_PERM)
    for row in (0, 7, 151, *range(-6, 0)):
        assert np.array_equal(signatures([texts[row]])[0], together[row])
    assert np.array_equal(signatures(texts[::-1])[::-1], together)


def test_signatures_are_the_same_on_every_machine_and_in_every_version():
    """These are stored in caches; if they change, so must `SIGNATURE_VERSION`."""
    first = signatures(["How many apples are left?", "사과는 몇 개입니까?"])
    assert first[:, :4].tolist() == PINNED


PINNED = [[32806, 50832, 52930, 24176], [1349, 51690, 46507, 13305]]


def test_known_signatures_give_the_same_at_every_threshold():
    texts = ENGLISH_TEXTS + [made.text for made in plant(ENGLISH_TEXTS, COPIES, 20, 0)]
    known = signatures(texts)
    for threshold in (0.4, 0.7, 0.95):
        assert near_duplicates(texts, threshold, known) == near_duplicates(texts, threshold)
    copies = near_copies_of(texts[:150], texts[150:], 0.7, known)
    assert copies == near_copies_of(texts[:150], texts[150:], 0.7)
    assert sum(copy is not None for copy in copies) > 100


def test_signatures_estimate_the_similarity_that_is_compared():
    texts = ENGLISH_TEXTS + KOREAN_TEXTS
    texts += [made.text for made in plant(texts, COPIES, 40, 0)]
    rows, cut = signatures(texts), [views(text) for text in texts]
    rng = random.Random(0)
    pairs = [rng.sample(range(len(texts)), 2) for _ in range(3000)]
    for half, name in ((slice(0, NUM_PERM), "spaceless"), (slice(NUM_PERM, None), "by_word")):
        exact = np.array([jaccard(getattr(cut[a], name), getattr(cut[b], name)) for a, b in pairs])
        errors = np.array([(rows[a, half] == rows[b, half]).mean() for a, b in pairs]) - exact
        assert np.abs(errors).max() < 0.25  # 0.044 is the largest standard deviation of a mean of 128
        assert abs(errors.mean()) < 0.005


@given(st.lists(st.text(alphabet="ab 가나+-1.,'’:/\u200b\u0301\x00\nﷺ½", max_size=12), max_size=12))
def test_texts_of_the_same_words_have_the_same_signature(texts):
    rows = signatures(texts)
    by_words: dict[tuple[str, ...], np.ndarray] = {}
    for text, row in zip(texts, rows, strict=True):
        assert np.array_equal(by_words.setdefault(tuple(words(text)), row), row)


# Hostile texts


@pytest.mark.parametrize(
    "texts",
    [
        ["", "", " ", "\x00", "?!", "\u200b"],
        ["\ud800", "\udfff\ud800", "a\ud800"],
        ["e" + "\u0301" * 5000, "e"],
        ["👨\u200d👩\u200d👧", "👨👩👧", "❤\ufe0f", "❤"],
        ["1" * 5000, "1," * 5000, "-" * 5000, "- 1" * 3000],
    ],
    ids=["empty", "surrogates", "marks", "emoji", "numbers"],
)
def test_odd_texts_give_what_all_pairs_give(texts):
    assert as_pairs(near_duplicates(texts, 0.7)) == by_all_pairs(texts, 0.7)


def test_no_text_gives_no_match():
    assert near_duplicates([], 0.7) == near_copies_of([], [], 0.7) == []
    assert near_copies_of([], ["a"], 0.7) == [None]
    assert near_copies_of(["a"], [], 0.7) == []


def test_texts_of_a_megabyte_are_compared():
    rng = random.Random(0)
    long = " ".join(rng.choice(ENGLISH_TEXTS) for _ in range(2500))
    mistyped = long.replace("which", "whihc", 1000)
    other = " ".join(rng.choice(ENGLISH_TEXTS[75:]) for _ in range(2500))
    started = time.monotonic()
    assert [match is not None for match in near_duplicates([long, mistyped, other], 0.7)] == [False, True, False]
    assert time.monotonic() - started < 120


@pytest.mark.parametrize("slip", ["", "x"])
def test_time_grows_linearly_with_the_number_of_copies(slip):
    text = ENGLISH_TEXTS[0]
    texts = [text + f" please{slip * (number % 500)}" for number in range(5_000)]
    started = time.monotonic()
    matches = near_duplicates(texts, 0.7)
    assert time.monotonic() - started < 120
    assert matches[0] is None and sum(match is None for match in matches) < 500


def test_a_template_shared_by_thousands_hides_no_copy():
    rng = random.Random(0)
    template = "Say to which category the title belongs, and give one reason for the category that you chose. Title: "
    letters = "abcdefghijklmnopqrstuvwxyz"
    titles = [" ".join("".join(rng.choices(letters, k=7)) for _ in range(4)) for _ in range(2000)]
    texts = [template + title for title in titles]
    copies = [text.replace("category", "catgeory", 1) for text in texts[:100]]
    matches = near_duplicates(texts + copies, 0.7)
    assert matches[:2000] == [None] * 2000
    found = [match is not None and match.index == row for row, match in enumerate(matches[2000:])]
    assert sum(found) >= 99


# Properties


@given(st.lists(st.text(alphabet="ab 가나+1.", max_size=12), max_size=12), st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]))
def test_every_match_reports_the_similarity_that_was_compared(texts, threshold):
    for text, match in zip(texts, near_duplicates(texts, threshold), strict=True):
        if match is not None:
            assert similarity(text, texts[match.index]) == match.similarity >= threshold


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_identical_texts_are_always_found(texts):
    assert all(match is not None for match in near_duplicates([*texts, *texts], 1.0)[len(texts) :])


def test_similarity_does_not_depend_on_which_text_comes_first():
    texts = ENGLISH_TEXTS[:60] + KOREAN_TEXTS
    for made in plant(texts, COPIES | LOOKALIKES, 30, 3):
        original = texts[made.index]
        assert (similarity(original, made.text) >= 0.7) == (similarity(made.text, original) >= 0.7), made


def test_copies_of_held_out_prompts_are_found_in_both_languages():
    originals = [ENGLISH_TEXTS[0], KOREAN_TEXTS[0]]
    texts = [ENGLISH_TEXTS[1], ENGLISH_TEXTS[0].lower(), KOREAN_TEXTS[0].replace(" ", ""), KOREAN_TEXTS[1]]
    assert as_pairs(near_copies_of(originals, texts, 0.7)) == [None, (0, 1.0), (1, 1.0), None]


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_the_index_may_miss_at_most_two_in_a_thousand_at_any_threshold(threshold):
    rows = band_rows(threshold)
    assert (1 - threshold**rows) ** (NUM_PERM // rows) <= 2e-3 or rows == 1
    rows, nearer = band_rows(threshold, 1_000_000), min(1.0, threshold + 0.1)
    assert (1 - nearer**rows) ** (NUM_PERM // rows) <= 2e-3 or rows == 1


def test_normalised_texts_keep_what_has_meaning():
    assert normalise("What is 12 / 3, or −5?") == "whatis12/3or−5"
    assert normalise("Ｈello\u200b, it's 3.14.") == "helloits3.14"


def test_another_process_finds_the_same():
    code = (
        "import json,sys; from llmdistill.curate.duplicates import near_duplicates;"
        "print([m and (m.index, m.similarity) for m in near_duplicates(json.load(sys.stdin), 0.3)])"
    )
    texts = ENGLISH_TEXTS[:100]
    outputs = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            env={"PYTHONPATH": str(REPO), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout.strip())
    assert outputs == {str(as_pairs(near_duplicates(texts, 0.3)))}

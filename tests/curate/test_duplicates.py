"""Near duplicates: the index finds what a comparison of all pairs finds, and nothing else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.curate.duplicates import jaccard, near_copies_of, near_duplicates, normalise, num_bands, shingles
from tests.tiny import PROMPTS, REPO

KOREAN = REPO / "data" / "korean" / "prompts.jsonl"


def prompts_of(path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").split("\n") if line]


ENGLISH_TEXTS, KOREAN_TEXTS = prompts_of(PROMPTS)[:150], prompts_of(KOREAN)


def by_all_pairs(texts: list[str], threshold: float) -> list[tuple[int, float] | None]:
    """The definition: greedy in order, most similar kept text, the earlier one of equals."""
    found: list[tuple[int, float] | None] = []
    kept: list[int] = []
    sets = [shingles(text) for text in texts]
    for index in range(len(texts)):
        similar = [(jaccard(sets[index], sets[other]), -other) for other in kept]
        best = max(similar, default=(-1.0, 0))
        if best[0] >= threshold:
            found.append((-best[1], best[0]))
        else:
            found.append(None)
            kept.append(index)
    return found


def as_pairs(matches) -> list[tuple[int, float] | None]:
    return [match and (match.index, match.similarity) for match in matches]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
def test_real_prompts_give_what_all_pairs_give(threshold):
    texts = ENGLISH_TEXTS + KOREAN_TEXTS
    assert as_pairs(near_duplicates(texts, threshold)) == by_all_pairs(texts, threshold)


def spacing(text: str, rng: random.Random) -> str:
    return "".join(" " + c if rng.random() < 0.1 else "" if c == " " and rng.random() < 0.4 else c for c in text)


def particles(text: str, rng: random.Random) -> str:
    swaps = {"은 ": "이 ", "는 ": "가 ", "을 ": "은 ", "를 ": "는 ", "이 ": "은 ", "가 ": "는 "}
    old = rng.choice([particle for particle in swaps if particle in text] or ["@"])
    return text.replace(old, swaps.get(old, "@"), 1)


def typo(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text))
    return text[:place] + rng.choice("xq가") + text[place + 1 :]


CHANGES = {
    "case": lambda text, rng: text.upper(),
    "spacing": spacing,
    "punctuation": lambda text, rng: text.replace(". ", "! ").replace(",", " ;").replace("?", "") + " ...",
    "width": lambda text, rng: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "decomposed": lambda text, rng: unicodedata.normalize("NFD", text),
    "particle": particles,
    "typo": typo,
    "two typos": lambda text, rng: typo(typo(text, rng), rng),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("texts", [ENGLISH_TEXTS, KOREAN_TEXTS], ids=["en", "ko"])
def test_every_planted_copy_is_found_and_nothing_else(texts, change):
    rng = random.Random(0)
    kept = [text for text, copy in zip(texts, by_all_pairs(texts, 0.7), strict=True) if copy is None]
    originals = [text for text in kept if len(normalise(text)) > (100 if "typo" in change else 50)][:150]
    assert len(originals) >= 4
    copies = [CHANGES[change](text, rng) for text in originals]
    matches = near_duplicates(originals + copies, 0.7)
    assert matches[: len(originals)] == [None] * len(originals)
    wrong = [
        (original, copy)
        for index, (original, copy, match) in enumerate(zip(originals, copies, matches[len(originals) :], strict=True))
        if match is None or match.index != index
    ]
    assert wrong == []


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
        ["안녕하세요?", "안녕히 가세요."],
    ],
    ids=lambda texts: texts[0],
)
def test_short_texts_of_different_meaning_are_not_copies(texts):
    assert near_duplicates(texts, 0.7) == [None] * len(texts)


def test_a_group_of_copies_keeps_its_first_and_all_name_it():
    text = ENGLISH_TEXTS[0]
    matches = near_duplicates([text, text + "!", text.upper(), "something else entirely"], 0.7)
    assert as_pairs(matches) == [None, (0, 1.0), (0, 1.0), None]


@given(st.lists(st.text(alphabet="ab 가나+1.", max_size=12), max_size=12), st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]))
def test_no_pair_is_ever_reported_below_the_threshold(texts, threshold):
    for text, match in zip(texts, near_duplicates(texts, threshold), strict=True):
        if match is not None:
            assert jaccard(shingles(text), shingles(texts[match.index])) == match.similarity >= threshold


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_identical_texts_are_always_found(texts):
    assert all(match is not None for match in near_duplicates([*texts, *texts], 1.0)[len(texts) :])


def test_copies_of_held_out_prompts_are_found_in_both_languages():
    originals = [ENGLISH_TEXTS[0], KOREAN_TEXTS[0]]
    texts = [ENGLISH_TEXTS[1], ENGLISH_TEXTS[0].lower(), KOREAN_TEXTS[0].replace(" ", ""), KOREAN_TEXTS[1]]
    assert as_pairs(near_copies_of(originals, texts, 0.7)) == [None, (0, 1.0), (1, 1.0), None]


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_the_index_may_miss_at_most_one_in_a_thousand_at_any_threshold(threshold):
    bands = num_bands(threshold)
    assert 128 % bands == 0
    missed = (1 - threshold ** (128 // bands)) ** bands
    assert missed <= 1e-3 or bands == 128


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

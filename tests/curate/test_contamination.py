"""Contamination: planted questions are found wherever they stand and however they are written, and nothing else is."""

from __future__ import annotations

import json
import random
import unicodedata

import numpy as np
import pytest

from llmdistill.config import Curate, Decontaminate, Prompts
from llmdistill.curate.contamination import (
    MAX_SPAN,
    EvaluationSet,
    against_hashes,
    contaminated,
    read_sets,
)
from llmdistill.curate.overlap import Overlap
from llmdistill.curate.tokens import places, tokens
from llmdistill.errors import ConfigError, InputError
from tests.runs import answered, pipeline
from tests.tiny import REPO


def column(name: str, key: str) -> list[str]:
    return [json.loads(line)[key] for line in (REPO / "data" / name).read_text("utf-8").split("\n") if line]


TRAIN = column("gsm8k/train-first-600.jsonl", "question")
TEST = column("gsm8k/test-first-200.jsonl", "question")
KOREAN = column("korean/prompts.jsonl", "prompt")
ONLY_OVERLAP = Decontaminate(near=None)
ONLY_NEAR = Decontaminate(overlap=None)


def a_set(questions: list[str], name: str = "test") -> EvaluationSet:
    return EvaluationSet(name, questions, [f"{name}:{number}" for number in range(1, len(questions) + 1)])


def find(questions, evaluation, settings=ONLY_OVERLAP, replies=None):
    return contaminated(questions, replies or [""] * len(questions), [a_set(evaluation)], settings)


def whose(found) -> list[int | None]:
    """Number of the evaluation question from 0."""
    return [item and int(item.where.split(":")[1]) - 1 for item in found]


def test_clean_training_questions_raise_no_alarm():
    assert find(TRAIN, TEST, Decontaminate()) == [None] * len(TRAIN)
    assert find(column("self-instruct/prompts.jsonl", "prompt") + KOREAN, TEST, Decontaminate()).count(None) == 467


@pytest.mark.parametrize("settings", [ONLY_OVERLAP, ONLY_NEAR, Decontaminate()])
def test_every_verbatim_copy_is_found_and_names_its_question(settings):
    found = find(TRAIN + TEST, TEST, settings)
    assert whose(found) == [None] * len(TRAIN) + list(range(len(TEST)))
    assert all(item.value == 1.0 for item in found[len(TRAIN) :])


WAYS = {
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "chinese marks": lambda text: text.replace(". ", "。").replace(", ", "，").replace("?", "？"),
    "quotes and dashes": lambda text: "“" + text.replace("'", "’").replace("-", "—").replace(". ", " … ") + "”",
    "no spacing between sentences": lambda text: text.replace(". ", "."),
    "hidden marks": lambda text: "\u200b".join(text[start : start + 3] for start in range(0, len(text), 3)),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "upper case": str.upper,
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "lines": lambda text: text.replace(" ", "\r\n\t"),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_marks_width_and_spacing_hide_no_copy(way):
    planted = [WAYS[way](text) for text in TEST + KOREAN]
    found = find(TRAIN + planted, TEST + KOREAN)
    assert whose(found)[len(TRAIN) :] == list(range(len(planted)))


def test_a_question_inside_a_longer_text_or_a_reply_is_found_where_it_stands():
    rng = random.Random(0)
    longer = [f"{rng.choice(TRAIN)} And then: {text} {rng.choice(TRAIN)}" for text in TEST]
    in_replies = [f"A like one is: {text} Solve it so." for text in TEST]
    found = find(TRAIN + longer + TRAIN[:200], TEST, replies=[""] * (len(TRAIN) + 200) + in_replies)
    assert whose(found) == [None] * len(TRAIN) + 2 * list(range(200))
    assert {item.field for item in found[600:800]} == {"question"}
    assert {item.field for item in found[800:]} == {"reply"}
    for item, text in zip(found[600:], TEST + TEST, strict=True):
        assert text[:80] in item.span and len(item.span) <= MAX_SPAN


def test_another_name_and_another_word_here_and_there_leave_enough_to_be_found():
    changed = [" ".join("so" if place % 12 == 5 else w for place, w in enumerate(text.split())) for text in TEST]
    assert sum(item is not None for item in find(TRAIN + changed, TEST)[len(TRAIN) :]) >= 190


def test_korean_copies_are_found_with_and_without_spaces_and_inside():
    packed = [text.replace(" ", "") for text in KOREAN]
    longer = [f"숙제입니다. 먼저 읽어 보세요: {text} 이제 풀어 주시면 정말 고맙겠습니다." for text in KOREAN]
    found = whose(find(packed + longer, KOREAN))
    assert found == 2 * list(range(len(KOREAN)))


@pytest.mark.parametrize(
    "question",
    [
        "太郎さんはリンゴを三個持っていました。花子さんに一個あげました。残りはいくつですか。",
        "小明有三十二本书，他借给同学十五本，又买了七本，现在小明一共有多少本书？",
        "สมชายมีแอปเปิ้ลสิบสองลูก เขาให้น้องไปห้าลูก เขาเหลือแอปเปิ้ลกี่ลูก",
        "राम के पास बारह सेब थे और उसने पाँच सेब अपनी बहन को दे दिए, अब उसके पास कितने सेब बचे हैं?",
    ],
)
def test_scripts_without_spaces_or_with_marks_are_searched_too(question):
    texts = [f"ABC {question} xyz", question.replace(" ", ""), KOREAN[0], TRAIN[0]]
    assert whose(find(texts, [question]))[0] == 0
    assert whose(find(texts, [question]))[2:] == [None, None]
    assert find(texts, [question])[0].span.rstrip("。？?") == question.rstrip("。？?")


def test_what_all_texts_share_is_a_template_and_no_contamination():
    template = "Read the review below and say whether its author liked the film. Answer with one word. Review: "
    asked = [template + text for text in TEST[:30]]
    assert whose(find([template + text for text in TRAIN] + asked[:1], asked)) == [None] * len(TRAIN) + [0]
    small = [template + f"{number} stars, {word}" for number, word in enumerate(TRAIN[0].split())]
    assert find(small, [template + "Great."]) == [None] * len(small)


def test_a_question_that_is_boilerplate_is_found_only_where_it_is_the_whole_text():
    boilerplate = "How many apples does he have left in all?"
    texts = [f"{text} {boilerplate}" for text in TRAIN[:50]]
    assert whose(find([*texts, boilerplate.upper()], [boilerplate])) == [None] * 50 + [0]
    assert whose(find([*texts, boilerplate.upper()], ["How many apples does he have?"])) == [None] * 51


def test_a_short_question_is_found_where_it_is_half_of_the_text():
    asked = ["Name the capital city.", "Hello"]
    texts = ["Please name the capital city!", "hello", "Hello there", "Hi", "Then name the capital city of " + TRAIN[0]]
    assert whose(find(texts, asked)) == [0, 1, None, None, None]
    assert find(["Say it."], ["Yes"], replies=["Yes"]) == [None]


@pytest.mark.parametrize("settings", [ONLY_OVERLAP, ONLY_NEAR, Decontaminate(similarity=0.9)])
def test_empty_questions_and_sets_match_nothing(settings):
    assert find(["", "...", "a b c"], ["", "?!", " "], settings) == [None] * 3
    assert find(["text"], [], settings) == [None]
    assert contaminated([], [], [a_set(TEST)], settings) == []
    assert contaminated(["text"], [""], [], settings) == [None]


def test_signs_tell_sums_apart():
    sums = ["What is 12 + 3?", "What is 12 - 3?", "What is 12*3?", "What is 1.23?", "What is 123?", "🍎🍎 + 🍐 = ?"]
    assert whose(find(sums, sums)) == list(range(6))
    assert whose(find(["What is 12/3?", "🍎🍎 + 🍎 = ?", "what is １２＋３"], sums)) == [None, None, 0]


def test_the_first_of_identical_sets_is_named():
    sets = [a_set(TEST, "first"), a_set(TEST, "second")]
    found = contaminated(TEST, [""] * len(TEST), sets, Decontaminate())
    assert {item.set for item in found} == {"first"}


def test_the_order_of_the_records_changes_nothing():
    texts = TRAIN[:100] + [text + " " + TRAIN[number] for number, text in enumerate(TEST[:50])]
    order = random.Random(1).sample(range(150), 150)
    found, shuffled = find(texts, TEST), find([texts[row] for row in order], TEST)
    assert [found[row] for row in order] == shuffled


def test_samples_of_one_prompt_do_not_make_its_question_common():
    found = find([TEST[0] + " Explain."] * 64 + TRAIN[:10], TEST)
    assert whose(found) == [0] * 64 + [None] * 10


def test_batches_find_what_one_batch_finds(monkeypatch):
    texts = TRAIN[:50] + [TRAIN[number] + text for number, text in enumerate(TEST)]
    whole = find(texts, TEST)
    monkeypatch.setattr("llmdistill.curate.overlap._BATCH", 100)
    monkeypatch.setattr("llmdistill.curate.overlap._CELLS", 60)
    assert find(texts, TEST) == whole
    assert whose(whole)[50:] == list(range(200))


def test_the_share_is_what_the_definition_gives():
    """Runs of 5 tokens; a text of its own, so that no run is common."""
    question = " ".join(f"word{number}" for number in range(20))
    words = question.split()
    text = " ".join([*words[:7], "x", *words[7:11], "y", *words[12:20]])
    (cover,) = Overlap([question], 5, 0.5).find([text], 1, 0.1)
    assert cover.share == pytest.approx(15 / 20)
    assert Overlap([question], 5, 0.5).find([text], 1, 0.76) == [None]


def test_a_megabyte_of_text_is_searched_and_the_span_traced():
    rng = random.Random(0)
    long = " ".join(rng.choice(TRAIN) for _ in range(4_500))
    assert len(long) > 1_000_000
    (found,) = find([long + " Ünïcode — " + TEST[3]], TEST)
    assert TEST[3].startswith(found.span[:100]) and whose([found]) == [3]
    assert find(["가" * 1_000_000], TEST + KOREAN) == [None]


def test_the_span_is_a_piece_of_the_text_as_it_stands_there():
    copy = "Ｊａｎｅｔ’ｓ “ducks” lay 16 eggs per day.  She eats\nthree for breakfast every\u200b morning"
    (found,) = find(
        [f"\x1b[31m<b>{copy}</b> — done"],
        ["Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning"],
    )
    assert found.span == copy


@pytest.mark.parametrize("text", [*TEST[:50], *KOREAN, "é" * 3, "각각 하나 ﷺ ﬁ ㎞ ½ ǆ", "한국어 ", "ｶﾞｷﾞ 🇰🇷👩‍💻 1,000,5"])
def test_traced_tokens_are_the_tokens(text):
    for form in ("NFC", "NFD", "NFKC"):
        traced = places(unicodedata.normalize(form, text))
        assert traced is not None and traced.tokens == tokens(text)


def test_cosine_is_used_where_it_is_asked_for_and_ignores_broken_vectors():
    settings = Decontaminate(near=None, overlap=None, similarity=0.9)
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [np.nan, 0.0]])
    sets = [a_set(["x", "y"]), a_set(["z"], "other")]
    found = contaminated(["a", "b", "c"], [""] * 3, sets, settings, (vectors, [vectors[[2, 0]], vectors[[1]]]))
    assert [item and (item.where, item.measure, item.value) for item in found] == [
        ("test:2", "similarity", 1.0),
        ("other:1", "similarity", pytest.approx(1.0)),
        None,
    ]


def write(path, *rows) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return str(path)


def sets_of(path, *held_out, **settings):
    curate = Curate(decontaminate=Decontaminate(against=(path,) if path else (), **settings))
    return read_sets(pipeline("run", curate=curate, prompts=Prompts(path="x.jsonl")), list(held_out))


def test_held_out_prompts_are_a_set_without_being_named():
    record = answered("오늘 날씨가 어때요?")
    (found,) = sets_of(None, record)
    assert (found.name, found.questions, found.where) == ("held_out", ["오늘 날씨가 어때요?"], [record.id])
    assert sets_of(None) == []


def test_usual_columns_and_conversations_are_read(tmp_path):
    messages = [{"role": "user", "content": "C?"}, {"role": "assistant", "content": "c"}]
    rows = [{"prompt": "A?"}, {"question": "B?"}, {"messages": messages}, {"instruction": "D", "input": "d"}]
    path = write(tmp_path / "eval.jsonl", *rows)
    (found,) = sets_of(path)
    assert found.questions == ["A?", "B?", "C?", "D\n\nd"]
    assert found.where == [f"{path}:{number}" for number in range(1, 5)]
    assert sets_of(write(tmp_path / "own.jsonl", {"Body": "E?"}), field="Body")[0].questions == ["E?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no evaluation question"),
        ('{"question": " "}', "no evaluation question"),
        ('{"question": "A"}\n{"body": "B"}', r"eval.jsonl:2: not an evaluation question: no_prompt"),
        ('{"question": "A"}\n{"question"', r"eval.jsonl:2: not an evaluation question: invalid_json"),
        ("[1]", "not_an_object"),
        ('{"question": 7}', "wrong_type"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_row(tmp_path, text, message):
    path = tmp_path / "eval.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        sets_of(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_and_another_content_is_another_digest(tmp_path):
    with pytest.raises(ConfigError, match="no such evaluation file"):
        sets_of(str(tmp_path / "none.jsonl"))
    path = write(tmp_path / "eval.jsonl", {"question": "A"})
    before = against_hashes(Decontaminate(against=(path,)))
    write(tmp_path / "eval.jsonl", {"question": "B"})
    assert before.keys() == against_hashes(Decontaminate(against=(path,))).keys()
    assert before != against_hashes(Decontaminate(against=(path,)))

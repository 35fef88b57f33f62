"""Each format check fires on what it is for and leaves good answers alone, in English and in Korean."""

from __future__ import annotations

import json
import time
import unicodedata

import pytest

from llmdistill.config import Checks
from llmdistill.filter.checks import (
    failed_check,
    prompt_echoed,
    refusal,
    repetition_loop,
    too_short,
    truncated,
    wrong_language,
)
from llmdistill.record import Record, TeacherInfo, record_id
from tests.tiny import REPO


def record(answer: str, prompt: str = "Tell me something about it.", finish_reason: str = "stop") -> Record:
    messages = [{"role": "user", "content": prompt}]
    teacher = TeacherInfo("m", None, "d", finish_reason, 5, 96)
    completion = [{"role": "assistant", "content": answer}]
    return Record(record_id(messages), messages, completion, answer=answer, teacher=teacher)


REFUSALS = [
    "I'm sorry for any confusion, but as an AI designed to help with text, I don't have access to the internet.",
    "I’m sorry, but I can’t help with that.",
    "I'm really sorry, but I cannot assist with this request.",
    "I am sorry, but I am unable to provide medical advice.",
    "Sorry, but I can't do that.",
    "Sorry, I cannot answer this question.",
    "I apologize, but I'm not able to generate that content.",
    "I apologise for the inconvenience, but I cannot provide this information.",
    "Unfortunately, I can't share personal data.",
    "I cannot provide a list of such websites.",
    "I can't assist with that.",
    "I'm unable to browse the internet.",
    "I won't help you with this.",
    "I will not comply with this request.",
    "As an AI language model, I don't have personal opinions.",
    "As an AI, I do not have feelings.",
    "As a large language model, I cannot predict the future.",
    "As an artificial intelligence, I am not able to taste food.",
    "As a digital AI assistant, I have no access to your files.",
    "**I'm sorry**, but I can't help with that.",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    "죄송합니다. 그 질문에는 답변을 드릴 수 없습니다.",
    "죄송합니다만, 해당 정보를 제공해 드릴 수 없습니다.",
    "죄송합니다만 이 요청을 처리하기 어렵습니다.",
    "미안하지만 그런 글은 작성할 수 없어요.",
    "안타깝게도 그 내용은 알려 드릴 수 없습니다.",
    "유감스럽지만 요청을 수행할 수 없습니다.",
    "저는 AI 언어 모델로서 개인적인 의견이 없습니다.",
    "저는 인공지능이라서 감정을 느끼지 못합니다.",
    "AI 모델이기 때문에 실시간 정보를 확인할 수 없습니다.",
    "죄송합니다. 저는 인공지능 언어 모델로서 인터넷에 접속할 수 없습니다.",
    "저는 챗봇이라 음식을 먹을 수 없습니다.",
]

NOT_REFUSALS = [
    "I'm sorry I missed your birthday party. Let me make it up to you next week.",
    "Sorry, I am running late. I'll be there in ten minutes.",
    "I'm sorry to hear that you are ill. Get well soon!",
    "I am sorry for the delay. Your parcel was sent this morning.",
    "Sorry, I can see you on Friday instead.",
    "Dear Ms Lee, I am sorry, but I can't come to the meeting on Friday.",
    "I can't help but wonder what the sea looks like at night.",
    "I can't help falling in love with you.",
    "Unfortunately, the store closes at five. You can order online.",
    "I cannot believe how quickly the time has passed.",
    "I apologize for the mistake in my last email; the right date is 4 May.",
    "As an AI language model, I can suggest three books about this.",
    "As an athlete, I don't eat sugar.",
    "AI cannot feel emotions, because it has no body.",
    "The customer said: I'm sorry, but I cannot provide a receipt.",
    "We will not know the result until Monday.",
    "No.",
    "죄송합니다. 어제 회의에 참석하지 못했습니다. 다음 주에 찾아뵙겠습니다.",
    "죄송하지만 금요일에는 시간이 없습니다. 월요일은 어떠세요?",
    "미안해, 어제는 너무 늦게 끝나서 전화를 못 했어.",
    "안타깝게도 기차는 이미 떠났습니다.",
    "인공지능은 사람의 감정을 느낄 수 없습니다.",
    "저는 학생이라서 시간이 많지 않습니다.",
    "고객님, 불편을 드려 죄송합니다. 바로 환불해 드리겠습니다.",
    "답변이 늦어 죄송합니다. 첨부 파일을 보내 드립니다.",
    "유감을 표하는 말로는 '안타깝습니다'가 있습니다.",
    "AI 언어 모델은 다음 단어를 예측합니다.",
    "그 문제는 답이 없습니다.",
    "도움이 필요하면 언제든지 말씀해 주세요.",
    "죄송하다는 말은 잘못을 인정할 때 씁니다.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals_are_found(answer):
    assert refusal(record(answer))


@pytest.mark.parametrize("answer", NOT_REFUSALS)
def test_answers_that_only_sound_like_refusals_are_left_alone(answer):
    assert refusal(record(answer)) is None


LOOPS = [
    "The answer is no. " + "I think so. " * 10,
    "a, b, " + "and so on, " * 9 + "and so",
    "ha" * 40,
    "0" * 60,
    "x = 1\n" * 12,
    "She said that " * 8,
    "The best way to learn is to practise every day. " * 5,
    "Step 1: Wait.\nStep 1: Wait.\nStep 1: Wait.\nStep 1: Wait.\nStep 1: Wait.",
    "First " + "the cat sat on the mat and " * 6 + "the cat.",
    " ".join(f"I like the {w} one." for w in "red blue red blue red".split() * 9),
    "네, " + "그렇습니다. " * 10,
    "서울은 대한민국의 수도입니다. " * 6,
    "하하하하" * 20,
    "답은 " + "입니다 입니다 " * 12,
    "1. 물을 마십니다.\n" * 8,
    "좋은 하루 되세요! " * 8,
    "가나다라 " * 12,
    "저는 학교에 갑니다. 그리고 저는 집에 갑니다. " * 5,
    "ㅋㅋㅋㅋ" * 15,
    "그리고 " * 20,
]

NOT_LOOPS = [
    "Yes.",
    "No, no, no.",
    "Ha ha ha!",
    "10000000000000000000",
    "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |",
    "Name: ____________________",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "for i in range(3):\n    for j in range(3):\n        print(i, j)\n",
    "Monday: run. Tuesday: swim. Wednesday: rest. Thursday: run. Friday: swim.",
    "{'a': {'b': {'c': {'d': {}}}}}",
    "네.",
    "하하하!",
    "월요일은 수영, 화요일은 달리기, 수요일은 휴식, 목요일은 등산입니다.",
    "하나, 둘, 셋, 넷, 다섯, 여섯, 일곱, 여덟, 아홉, 열",
    "사과 1개, 배 2개, 감 3개, 귤 4개, 포도 5송이를 샀습니다.",
    "산토끼 토끼야 어디를 가느냐 깡충깡충 뛰면서 어디를 가느냐",
    "1. 물을 끓입니다.\n2. 면을 넣습니다.\n3. 스프를 넣습니다.\n4. 3분 기다립니다.",
    "빨리빨리 서두르지 말고 천천히 하세요.",
    "가격은 1,000,000,000원입니다.",
    "그는 웃었고, 그녀도 웃었고, 모두가 웃었습니다.",
]


@pytest.mark.parametrize("answer", LOOPS, ids=lambda text: repr(text[:25]))
def test_loops_are_found(answer):
    assert repetition_loop(record(answer))


@pytest.mark.parametrize("answer", NOT_LOOPS, ids=lambda text: repr(text[:25]))
def test_lists_rhymes_and_tables_are_no_loops(answer):
    assert repetition_loop(record(answer)) is None


KO_PROMPT, EN_PROMPT = "서울의 날씨를 설명해 주세요.", "Describe the weather in Seoul."
EN_TEXT = "The weather in Seoul is cold and dry in winter."
KO_TEXT = "서울의 겨울은 춥고 건조하며, 여름은 덥고 비가 많이 옵니다."

WRONG_LANGUAGE = [
    ("ko", KO_PROMPT, EN_TEXT),
    ("ko", "파이썬이란?", "Python is a programming language created by Guido van Rossum."),
    ("ko", KO_PROMPT, "首尔的冬天寒冷干燥,夏天炎热多雨,春天和秋天是最好的季节。"),
    ("ko", KO_PROMPT, "ソウルの冬は寒くて乾燥していて、夏は暑くて雨が多いです。"),
    ("ko", KO_PROMPT, EN_TEXT + " (서울)"),
    ("ko", "인사말을 써 줘", "Hello and welcome to our company, dear customers!"),
    ("ko", "AI란 무엇인가요?", "Artificial intelligence is the science of thinking machines."),
    ("ko", KO_PROMPT, "Зима в Сеуле холодная и сухая, а лето жаркое."),
    ("ko", unicodedata.normalize("NFD", KO_PROMPT), EN_TEXT),
    ("ko", "다음 수를 더하세요: 3, 4, 5", "The sum of the three numbers is twelve in total."),
    ("en", EN_PROMPT, KO_TEXT),
    ("en", EN_PROMPT, "首尔的冬天寒冷干燥,夏天炎热多雨,春天和秋天是最好的季节。"),
    ("en", EN_PROMPT, "ソウルの冬は寒くて乾燥していて、夏は暑くて雨が多いです。"),
    ("en", EN_PROMPT, "Зима в Сеуле холодная и сухая, а лето жаркое."),
    ("en", EN_PROMPT, "الشتاء في سيول بارد وجاف والصيف حار وممطر"),
    ("en", EN_PROMPT, EN_TEXT + " " + KO_TEXT),
    ("en", "Say hi", KO_TEXT),
    ("en", "2+2?", "정답은 사입니다. 왜냐하면 둘 더하기 둘은 넷이기 때문입니다."),
    ("en", EN_PROMPT, "सियोल में सर्दी ठंडी और सूखी होती है और गर्मी में बारिश होती है"),
    ("en", EN_PROMPT, "โซลมีอากาศหนาวและแห้งในฤดูหนาวและมีฝนมากในฤดูร้อน"),
]

RIGHT_LANGUAGE = [
    ("ko", KO_PROMPT, KO_TEXT),
    ("ko", KO_PROMPT, unicodedata.normalize("NFD", KO_TEXT)),
    ("ko", "파이썬으로 인사하는 함수를 써 주세요.", "```python\ndef greet(name):\n    print('hello', name)\n```"),
    ("ko", "다음 문장을 영어로 바꿔 주세요: 안녕하세요, 반갑습니다.", "Hello, it is very nice to meet you."),
    ("ko", "다음 문장을 번역하세요: 안녕하세요, 반갑습니다.", "Hello, it is very nice to meet you."),
    ("ko", "'봄'을 일본어로 설명해 주세요.", "春は一年の最初の季節で、三月から五月までです。"),
    ("ko", EN_PROMPT, EN_TEXT),
    ("ko", KO_PROMPT, "GPU(Graphics Processing Unit)는 그래픽 처리 장치로, 행렬 곱을 빠르게 계산합니다."),
    ("ko", KO_PROMPT, "Seoul"),
    ("ko", "웃어 봐", "ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋ"),
    ("ko", KO_PROMPT, "1234567890 " * 10),
    ("en", EN_PROMPT, EN_TEXT),
    ("en", KO_PROMPT, KO_TEXT),
    ("en", "안녕?", "안녕하세요! 만나서 반갑습니다. 무엇을 도와드릴까요?"),
    ("en", "Translate 'good morning, everyone' into Hindi.", "आप सभी को सुप्रभात, आज का दिन शुभ हो"),
    ("en", "Say good morning in Russian, please, with details.", "Доброе утро, дорогие друзья, как дела?"),
    ("en", EN_PROMPT, "Séoul a un hiver très froid et un été très chaud à cause de la mousson."),
    ("en", EN_PROMPT, "The angle α + β + γ equals π, and μ is the mean of the distribution."),
    ("en", EN_PROMPT, "東京"),
    ("en", EN_PROMPT, "The word 하늘 means sky, and it is one of the most loved words of Korea."),
    ("en", EN_PROMPT, "3.14159 2.71828 1.41421 1.73205 0.57721"),
]


@pytest.mark.parametrize(("language", "prompt", "answer"), WRONG_LANGUAGE)
def test_answers_in_another_script_are_found(language, prompt, answer):
    assert wrong_language(record(answer, prompt), language)


@pytest.mark.parametrize(("language", "prompt", "answer"), RIGHT_LANGUAGE)
def test_code_translations_names_and_formulas_are_the_right_language(language, prompt, answer):
    assert wrong_language(record(answer, prompt), language) is None


LONG_EN = "Write a short poem about the autumn rain in Seoul."
LONG_KO = "서울의 가을비에 대한 짧은 시를 써 주세요. 네 줄이면 충분합니다. 운율은 없어도 됩니다."
ECHOES = [
    (prompt, echo)
    for prompt in (LONG_EN, LONG_KO)
    for echo in (
        prompt,
        prompt.upper(),
        f"  {prompt}\n",
        prompt.replace(" ", "\n"),
        prompt.replace(" ", "  "),
        prompt + " ok",
        "- " + prompt,
        f'"{prompt}"',
        unicodedata.normalize("NFD", prompt),
        prompt + "\n\n",
    )
]
NOT_ECHOES = [
    (LONG_EN, "Rain on the roofs of Seoul, leaves of gold, a quiet evening."),
    (LONG_EN, LONG_EN + " Rain on the roofs of Seoul, leaves of gold, and a quiet evening by the river."),
    (LONG_EN, "Write a short poem about the autumn rain in Busan."),
    (LONG_EN, ""),
    (LONG_EN, "Seoul"),
    ("Repeat: yes", "Repeat: yes"),
    ("Say ok.", "Say ok."),
    (LONG_EN, "The autumn rain in Seoul."),
    (LONG_EN, LONG_KO),
    (LONG_EN, LONG_EN[:30]),
    (LONG_KO, "지붕 위에 가을비, 금빛 잎이 지고, 저녁은 조용합니다."),
    (LONG_KO, LONG_KO + " 지붕 위에 가을비, 금빛 잎이 지고, 저녁은 조용하며 강은 흐릅니다."),
    (LONG_KO, LONG_KO.replace("서울", "부산")),
    (LONG_KO, LONG_KO[:20]),
    (LONG_KO, "서울의 가을비"),
    ("따라 하세요: 네", "따라 하세요: 네"),
    ("네?", "네?"),
    (LONG_KO, ""),
    (LONG_KO, LONG_EN),
    (LONG_KO, "가을비에 대한 짧은 시입니다."),
]


@pytest.mark.parametrize(("prompt", "answer"), ECHOES)
def test_a_prompt_given_back_is_found(prompt, answer):
    assert prompt_echoed(record(answer, prompt))


@pytest.mark.parametrize(("prompt", "answer"), NOT_ECHOES)
def test_an_answer_that_quotes_or_resembles_its_prompt_is_no_echo(prompt, answer):
    assert prompt_echoed(record(answer, prompt)) is None


def test_length_is_counted_without_the_spaces_around():
    answers = ["", " \n\t", "　", "a", "가", " 가 ", "ab"]
    assert [too_short(record(answer), 1) is None for answer in answers] == [False] * 3 + [True] * 4
    assert [too_short(record(answer), 2) is None for answer in answers] == [False] * 6 + [True]


def test_only_an_answer_that_ran_into_the_token_limit_is_truncated():
    found = {reason: truncated(record("a", finish_reason=reason)) for reason in ("stop", "length", "scored")}
    assert found == {"stop": None, "length": "after 96 tokens", "scored": None}
    assert truncated(Record("0", [], answer="a")) is None


@pytest.mark.parametrize(
    ("reason", "setting", "bad"),
    [
        ("empty", {"min_chars": 0}, record(" ")),
        ("truncated", {"truncated": False}, record("a good answer", finish_reason="length")),
        ("repetition_loop", {"repetition": False}, record("no, " * 30)),
        ("wrong_language", {"language": False}, record(KO_TEXT, EN_PROMPT)),
        ("refusal", {"refusal": False}, record("I'm sorry, but I can't help with that.")),
        ("prompt_echoed", {"echo": False}, record(LONG_EN, LONG_EN)),
    ],
)
def test_each_check_has_its_reason_and_its_switch(reason, setting, bad):
    found = failed_check(bad, Checks(), "en")
    assert found is not None and found[0] == reason
    assert failed_check(bad, Checks(**setting), "en") is None


HUMAN = [
    ("data/self-instruct/prompts.jsonl", "prompt", "reference", "en"),
    ("data/gsm8k/train-first-600.jsonl", "question", "answer", "en"),
    ("data/gsm8k/test-first-200.jsonl", "question", "answer", "en"),
    ("data/korean/prompts.jsonl", "prompt", "reference", "ko"),
]


@pytest.mark.parametrize(("name", "prompt", "reference", "language"), HUMAN, ids=[case[0] for case in HUMAN])
def test_at_most_one_in_a_hundred_human_answers_fails_any_check(name, prompt, reference, language):
    rows = [json.loads(line) for line in (REPO / name).read_text("utf-8").split("\n") if line]
    asked = [(row[prompt], row[reference]) for row in rows if row.get(reference)]
    assert len(asked) >= 10
    failed = [(failed_check(record(a, q), Checks(), language), q[:60], a[:60]) for q, a in asked]
    failed = [case for case in failed if case[0]]
    assert len(failed) <= 0.01 * len(asked), failed


HOSTILE = {
    "one letter": "a" * 1_000_000,
    "words": "ab " * 333_000,
    "spaces": " " * 1_000_000,
    "loop, then more": "a" * 999_000 + " b c" * 10,
    "run inside the tail": "x " * 499_000 + "a" * 800 + " b c d e " * 20,
    "dashes": "-" * 999_000 + " " + "b" * 200 + " c d",
    "almost periodic": ("a" * 119 + "b") * 8000 + " " + "c" * 121 + " d",
    "apologies": "I'm sorry " * 100_000,
    "apology, then spaces": "I'm sorry" + " " * 1_000_000 + "x",
    "as an AI": "as an AI " * 110_000,
    "Korean apologies": "죄송합니다 " * 150_000,
    "Korean half refusals": "죄송합니다만 답변을 " * 90_000,
    "fences": "```" * 300_000,
    "punctuation": "*" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_megabyte_takes_no_check_a_second(text):
    hostile = record(text, text[::-1] + "x")
    checks = [
        refusal,
        repetition_loop,
        prompt_echoed,
        lambda r: wrong_language(r, "ko"),
        lambda r: wrong_language(r, "en"),
    ]
    for check in checks:
        started = time.perf_counter()
        check(hostile)
        assert time.perf_counter() - started < 1.0

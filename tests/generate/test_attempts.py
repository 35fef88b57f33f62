"""The gold answer as a hint: who is told it, who never is, and what becomes of answers that cite it."""

from __future__ import annotations

from collections import Counter

import pytest

from llmdistill.config import CoTeacher, Filter, Samples
from llmdistill.errors import ConfigError
from llmdistill.generate.attempts import share_of
from llmdistill.templates import HintTemplate, load_template
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.generate.solutions import asked, asking, everything, kept, made, meta, rejects, served

MARKERS = {"en": ("Rationale:", "Answer:"), "ko": ("풀이:", "정답:")}
QUESTIONS = {"en": "What is the secret number of box {}?", "ko": "{}번 상자의 비밀 번호는 무엇입니까?"}
CITING = {"en": "As the hint says, it is so.", "ko": "힌트에 따르면 그렇습니다."}
TOLD = {"en": "the right answer is", "ko": "당신에게만"}


def gold(number: int) -> str:
    """A reference that nobody would write by chance."""
    return str(90_417_000 + number)


def rows_of(language: str, num: int) -> list[dict[str, str]]:
    """Every fourth row has no reference."""
    rows = [{"prompt": QUESTIONS[language].format(n), "reference": gold(n)} for n in range(num)]
    return [row if n % 4 else {"prompt": row["prompt"]} for n, row in enumerate(rows)]


class Guesser:
    """Knows nothing, so that it is right only if it is told; of three that are told, one says so."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, seen: Seen) -> Answer:
        rationale, answer = MARKERS[self.language]
        told = [number for number in range(100) if gold(number) in asked(seen)]
        if not told:
            return Answer(body=chat(f"{rationale} I guess.\n{answer} 5"))
        said = CITING[self.language] if told[0] % 3 == 0 else "9 + 9"
        return Answer(body=chat(f"{rationale} {said}\n{answer} {gold(told[0])}"))


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_reference_reaches_only_hinted_requests_and_hinted_records_say_so(language, tmp_path):
    rows = rows_of(language, 24)
    with serving(Guesser(language)) as server:
        wanted = {"template": None, "hint": "failed", "fallback": served(server.url, "second")}
        settings = asking(tmp_path, server.url, rows, "first", wanted, language=language)
        manifest = made(settings)
        seen = list(server.seen)
    first, second, hinted = manifest.metrics["rounds"]
    assert [first["asked"], second["asked"], hinted["asked"]] == [24, 18, 18]
    assert (hinted["role"], hinted["hinted"], hinted["model"]) == ("generate.fallback", True, "second")
    assert hinted["reasons"] == {"cites_hint": 6} and hinted["usable"] == 12
    with_gold = [request for request in seen if any(gold(n) in str(request.body) for n in range(24))]
    with_hint = [request for request in seen if TOLD[language] in asked(request)]
    assert len(with_gold) == 18 and with_gold == with_hint
    assert {request.body["model"] for request in with_gold} == {"second"}
    prompts = {row["prompt"]: row.get("reference") for row in rows}
    for record, reason in everything(settings).values():
        assert not reason and record.prompt == [{"role": "user", "content": record.question}]
        number = int("".join(filter(str.isdigit, record.question)))
        told = bool(prompts[record.question]) and number % 3 != 0
        assert meta(record).get("hinted", False) is told
        assert record.answer == (gold(number) if told else "5")
        reasons = [attempt["reason"] for attempt in meta(record)["attempts"]]
        last = "usable" if told else "cites_hint"
        assert reasons == (["wrong_answer", "wrong_answer", last] if prompts[record.question] else ["usable"])


@pytest.mark.parametrize("language", ["en", "ko"])
def test_always_hinting_tells_everyone_who_has_a_reference_at_once(language, tmp_path):
    rows = rows_of(language, 12)
    with serving(Guesser(language)) as server:
        others = (CoTeacher(model=served(server.url, "other")),)
        wanted = {"template": None, "hint": "always", "co_teachers": others}
        no_verifier = Filter(judge=None)
        settings = asking(tmp_path, server.url, rows, "first", wanted, language=language, filter=no_verifier)
        manifest = made(settings)
        assert len(server.seen) == 12
        assert sum(TOLD[language] in asked(request) for request in server.seen) == 9
    asked_of = Counter()
    for each in manifest.metrics["rounds"]:
        asked_of[each["hinted"]] += each["asked"]
    assert asked_of == {False: 3, True: 9}
    assert manifest.counts.reasons == {"cites_hint": 3} and len(kept(settings)) == 9
    assert all(meta(record).get("hinted", False) is (record.reference is not None) for record in kept(settings))
    assert {meta(reject.record)["hinted"] for reject in rejects(settings)} == {True}
    assert {reject.detail for reject in rejects(settings)} == {{"en": "the hint", "ko": "힌트"}[language]}


def test_turning_the_hint_on_asks_only_for_what_is_wrong_without_fresh(tmp_path):
    with serving(Guesser("en")) as server:
        rows = rows_of("en", 8)
        made(asking(tmp_path, server.url, rows, "first", {"template": None}))
        assert len(server.seen) == 8
        made(asking(tmp_path, server.url, rows, "first", {"template": None, "hint": "failed"}))
        assert len(server.seen) == 8 + 6


def test_a_hinted_answer_does_not_make_a_prompt_look_easy(tmp_path):
    with serving(Guesser("en")) as server:
        wanted = {"template": None, "hint": "failed", "samples": Samples(n=3, keep=2, keep_by="difficulty")}
        settings = asking(tmp_path, server.url, rows_of("en", 8), "first", wanted)
        made(settings)
    told = [record for record, _ in everything(settings).values() if meta(record).get("hinted")]
    assert len(told) == 12 and {meta(record)["pass_rate"] for record in told} == {0.0}


def test_of_a_solution_that_marks_its_answer_only_that_is_told(tmp_path):
    references = {"72": "48/2 = 24 clips in May.\nSo 48+24 = 72 altogether.\n#### 72", "3/4": "We get $\\boxed{3/4}$."}
    rows = [{"prompt": f"Question {number}", "reference": text} for number, text in enumerate(references.values())]
    rows.append({"prompt": "Question 2", "reference": "def test(): assert answer == 5"})
    with serving(Guesser("en")) as server:
        no_verifier = Filter(judge=None)
        made(asking(tmp_path, server.url, rows, "first", {"template": None, "hint": "always"}, filter=no_verifier))
        told = {asked(seen).split("right answer is ")[1].split("\n")[0] for seen in server.seen}
    assert told == {*references, "def test(): assert answer == 5"}


CITED = [
    ("en", "According to the hint, x = 2.", True),
    ("en", "Since THE  HINT says so", True),
    ("en", "They crossed the hinterland for 2 days.", False),
    ("en", "The given answer must hold, so 4.", True),
    ("en", "Each given number is doubled, which gives the answer 4.", False),
    ("ko", "힌트를 보면 4입니다.", True),
    ("ko", "주어진 정답이 4이므로 4입니다.", True),
    ("ko", "정답이 주어져 있으므로", True),
    ("ko", "주어진 수를 더하면 4가 됩니다.", False),
]


@pytest.mark.parametrize(("language", "rationale", "cites"), CITED)
def test_a_rationale_that_cites_the_hint_is_found_out(language, rationale, cites):
    template, _ = load_template(f"prompts/{language}/hint.yaml", HintTemplate)
    assert bool(template.cited(rationale, "2 + 2?")) is cites
    assert template.cited(rationale, f"Explain: {rationale}") is None


def test_a_hint_without_the_reference_is_refused(tmp_path):
    (tmp_path / "hint.yaml").write_text("user: '{{ prompt }} Think.'\n")
    with pytest.raises(ConfigError, match=r"hint.yaml: .*a hint names \{\{ reference \}\}"):
        load_template(str(tmp_path / "hint.yaml"), HintTemplate)


def test_a_reference_that_looks_like_a_template_is_only_text():
    template, _ = load_template("prompts/en/hint.yaml", HintTemplate)
    (message,) = template.ask_with([{"role": "user", "content": "{{ reference }}?"}], "{{ prompt }}")
    assert message["content"].startswith("{{ reference }}?") and "answer is {{ prompt }}\n" in message["content"]


def test_shares_follow_the_weights():
    draws = Counter(share_of(f"기록 {number}", [1.0, 2.0, 0.5]) for number in range(7000))
    assert [draws[index] for index in range(3)] == pytest.approx([2000, 4000, 1000], rel=0.1)

"""Synthetic pairs: every pair asked for is accounted for, and what is kept is new, whole and about the documents."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from llmdistill.config import Api, Evaluate, Generate, Model, Price, Prompts, Synthesis
from llmdistill.errors import ChangedError
from llmdistill.generate.stage import read, run
from llmdistill.generate.synthesis import draw, num_requests
from llmdistill.run.files import read_table
from tests.engines.loopback import Answer, chat, serving
from tests.generate.pair_replies import REPLIES
from tests.runs import pipeline

TEMPLATE = """
user: "{{ document }} -- {{ pairs }} {{ fence }}"
question_marker: "Question:"
rationale_marker: "Rationale:"
answer_marker: "Answer:"
"""


def settings_of(folder: Path, url: str, prompts: Prompts, synthesis: Synthesis, **more: object):
    api = Api(base_url=url, max_concurrency=4, timeout=20, patience=20)
    return pipeline(
        folder / "run",
        prompts=prompts,
        teacher=Model(model="fake", engine="openai", api=api, price=Price(input=1, output=3)),
        generate=Generate(mode="synthetic_qa", synthesis=synthesis, shard_size=7, **more),
        evaluate=Evaluate(synthetic_only="a test of how pairs are made"),
    )


def rows(settings) -> tuple[list[dict], list[dict]]:
    """Kept rows and rejects, each with its meta read."""
    folder = settings.run_path / "generate"
    kept = [row for path in sorted(folder.glob("part-*.parquet")) for row in read_table(path).to_pylist()]
    rejects = read_table(folder / "rejects.parquet").to_pylist()
    for row in [*kept, *rejects]:
        row["meta"] = json.loads(row["meta"])
    return kept, rejects


def make(settings):
    read(settings)
    return run(settings)


def asked(seen) -> str:
    return seen.body["messages"][-1]["content"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A run over one document for each reply of the corpus."""
    folder = tmp_path_factory.mktemp("말뭉치")
    (folder / "docs").mkdir()
    for number in range(len(REPLIES)):
        (folder / "docs" / f"{number:03d}.txt").write_text(f"Document number {number}.")
    (folder / "t.yaml").write_text(TEMPLATE)

    def reply(seen) -> Answer:
        item = REPLIES[int(re.search(r"number (\d+)", asked(seen)).group(1))]
        return Answer(body=chat(item.prefill + item.text or " ", "length" if item.cut else "stop"))

    with serving(reply) as server:
        synthesis = Synthesis(pairs=2, template=str(folder / "t.yaml"))
        settings = settings_of(folder, server.url, Prompts(path=str(folder / "docs")), synthesis)
        return settings, make(settings), len(server.seen)


def test_every_pair_asked_for_is_accounted_for_reply_by_reply(corpus):
    settings, manifest, num_seen = corpus
    kept, rejects = rows(settings)
    assert num_seen == manifest.usage.requests == len(REPLIES) == num_requests(settings, len(REPLIES))
    assert manifest.counts.input == len(kept) + len(rejects) == sum(max(2, len(r.found)) for r in REPLIES)
    for number, item in enumerate(REPLIES):
        chunk = f"{number:03d}.txt:1"
        mine = [row for row in kept if row["meta"]["chunk"] == chunk]
        dropped = Counter(row["reject"]["reason"] for row in rejects if row["meta"]["chunk"] == chunk)
        pairs = [found for found in item.found if not isinstance(found, str)]
        assert len(mine) + dropped.pop("duplicate_question", 0) == len(pairs), item.name
        wanted = Counter(found for found in item.found if isinstance(found, str))
        missing = max(0, 2 - len(item.found))
        wanted["missing_pair" if item.found else "unparsed"] += missing
        assert dropped == +wanted, item.name


def test_tokens_and_cost_of_a_request_are_divided_among_its_pairs(corpus):
    settings, manifest, _ = corpus
    kept, rejects = rows(settings)
    teachers = [row["teacher"] for row in [*kept, *rejects]]
    for name in ("prompt_tokens", "completion_tokens"):
        assert sum(teacher[name] for teacher in teachers) == getattr(manifest.usage, name)
    assert sum(teacher["cost"] for teacher in teachers) == pytest.approx(manifest.usage.cost)
    assert manifest.usage.cost > 0


def test_what_is_no_pair_keeps_the_piece_of_the_reply(corpus):
    settings, _, _ = corpus
    _, rejects = rows(settings)
    for row in rejects:
        item = REPLIES[int(row["source"]["key"][:3])]
        if row["reject"]["reason"] == "truncated":
            assert row["completion"][0]["content"] in item.prefill + item.text
    assert any(row["completion"] and "cannot help" in row["completion"][0]["content"] for row in rejects)


def test_whole_pairs_before_the_cut_are_whole(corpus):
    kept, _ = rows(corpus[0])
    assert {row["teacher"]["finish_reason"] for row in kept} == {"stop"}


def test_a_rationale_comes_before_the_answer_in_what_the_student_learns(corpus):
    kept, _ = rows(corpus[0])
    for row in kept:
        parts = [part for part in (row["rationale"], row["answer"]) if part]
        assert row["completion"][0]["content"] == "\n\n".join(parts)
    assert any(row["rationale"] for row in kept)


SEEDS = [
    "How many apples?",
    "서울은 어디에 있나요?",
    "```` fences\n```` and Question: x",
    "What is {{ pairs }}?",
    "Last?",
]


def seeds_file(folder: Path) -> Path:
    path = folder / "씨앗.jsonl"
    lines = [json.dumps({"prompt": text, "answer": f"gold {n}", "id": f"s{n}"}) for n, text in enumerate(SEEDS)]
    path.write_text("\n".join(lines), "utf-8")
    (folder / "held.jsonl").write_text(json.dumps({"prompt": "A held-out question?"}), "utf-8")
    return path


def seeded(folder: Path, url: str, pairs: int = 2, requests: int | None = 3, **more):
    path = seeds_file(folder)
    prompts = Prompts(path=str(path), held_out_path=str(folder / "held.jsonl"), system="Be brief.", licence="MIT")
    return settings_of(folder, url, prompts, Synthesis(pairs=pairs, examples=2, requests=requests), **more)


def test_new_questions_are_neither_seeds_nor_held_out_nor_the_same_twice(tmp_path):
    replies = iter(
        [
            "Question: ｈｏｗ many   APPLES?\nAnswer: 1\nQuestion: a held-out question?\nAnswer: 2",
            "Question: New 질문?\nRationale: r\nAnswer: 3\nQuestion: new  질문?\nAnswer: 4\n"
            "Question: Third?\nAnswer: 5",
            "Question: Other?\nAnswer: 6",
        ]
    )
    with serving(lambda seen: Answer(body=chat(next(replies)))) as server:
        settings = seeded(tmp_path, server.url)
        settings = settings.model_copy(update={"teacher": one_at_a_time(settings.teacher)})
        manifest = make(settings)
    kept, rejects = rows(settings)
    assert [row["prompt"][-1]["content"] for row in kept] == ["New 질문?", "Third?", "Other?"]
    assert manifest.counts.reasons == {"duplicate_question": 2, "held_out_question": 1, "missing_pair": 1}
    assert manifest.counts.input == 7  # 3 x 2 asked for, and one more came
    for row in kept:
        assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
        assert (row["meta"]["synthetic"], len(row["meta"]["seeds"]), row["source"]["licence"]) == (1, 2, "MIT")
        assert row["reference"] is None


def one_at_a_time(teacher: Model) -> Model:
    return teacher.model_copy(update={"api": teacher.api.model_copy(update={"max_concurrency": 1})})


def test_seeds_stand_between_fences_they_cannot_close_and_are_shown_in_turn(tmp_path):
    with serving(lambda seen: Answer(body=chat("Question: q?\nAnswer: a"))) as server:
        settings = seeded(tmp_path, server.url, requests=5)
        make(settings)
        texts = [asked(seen) for seen in server.seen]
        schema = server.seen[0].body["response_format"]["json_schema"]["schema"]
    assert Counter(seed for seed in SEEDS for text in texts if seed in text) == dict.fromkeys(SEEDS, 2)
    hostile = next(text for text in texts if SEEDS[2] in text)
    assert f"`````\nQuestion: {SEEDS[2]}\nAnswer: gold 2\n`````" in hostile
    assert schema["properties"]["pairs"]["items"]["required"] == ["question", "rationale", "answer"]


@pytest.mark.parametrize(("num_seeds", "examples"), [(5, 2), (5, 5), (3, 7), (1, 1), (7, 3)])
def test_seeds_are_drawn_without_replacement_until_all_were_used(num_seeds, examples):
    drawn = list(draw(num_seeds, examples, 20, seed=3))
    assert all(len(set(indices)) == len(indices) == min(examples, num_seeds) for indices in drawn)
    counts = Counter(index for indices in drawn for index in indices)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert drawn[:9] == list(draw(num_seeds, examples, 9, seed=3)) and (
        num_seeds == 1 or drawn != list(draw(num_seeds, examples, 20, 4))
    )


def test_the_same_command_asks_nothing_and_another_number_of_pairs_needs_fresh(tmp_path):
    with serving(lambda seen: Answer(body=chat("Question: q?\nAnswer: a"))) as server:
        settings = seeded(tmp_path, server.url)
        first = make(settings)
        assert make(settings) == first and len(server.seen) == 3
        more = seeded(tmp_path, server.url, requests=4)
        make(more)
        assert len(server.seen) == 4  # more requests: only the new one is asked
        changed = seeded(tmp_path, server.url, pairs=3)
        with pytest.raises(ChangedError, match="generate.synthesis.pairs: 2 -> 3"):
            run(changed)
        assert run(changed, fresh=True).counts.input == 9


def test_refused_and_failed_requests_fail_as_many_pairs_as_were_asked_for(tmp_path):
    def reply(seen) -> Answer:
        if SEEDS[0] in asked(seen):
            return Answer(400, {"error": {"message": "not this one"}})
        return Answer(body=chat("Question: q?\nAnswer: a"))

    with serving(reply) as server:
        settings = seeded(tmp_path, server.url, requests=5)
        counts = make(settings).counts
    assert counts.reasons["refused"] == 4  # two requests show that seed
    assert counts.input == 10


@pytest.mark.parametrize(
    ("question", "refers"),
    [
        ("According to the passage, what is honey?", True),
        ("What is described in this text?", True),
        ("What is honey, based on the given document?", True),
        ("위 글에 따르면 꿀은 무엇인가요?", True),
        ("본문에서 말하는 한지는 무엇인가요?", True),
        ("이 글의 주제는 무엇인가요?", True),
        ("What is the passage of time?", False),
        ("How do you select a word in the text editor?", False),
        ("글자는 몇 개인가요?", False),
        ("높이 글을 거는 풍습은?", False),
        ("한지는 무엇으로 만드나요?", False),
    ],
)
def test_a_question_that_speaks_of_the_text_is_a_reject(tmp_path, question, refers):
    (tmp_path / "d.md").write_text("Honey is sweet.")
    text = json.dumps({"pairs": [{"question": question, "answer": "a"}]})
    with serving(lambda seen: Answer(body=chat(text))) as server:
        settings = settings_of(tmp_path, server.url, Prompts(path=str(tmp_path / "d.md")), Synthesis(pairs=1))
        counts = make(settings).counts
    assert counts.reasons == ({"question_refers_to_text": 1} if refers else {})


def test_pairs_from_synthetic_seeds_count_the_generations():
    from llmdistill.generate.synthesis import generation
    from tests.runs import answered

    assert generation([answered("a"), answered("b").with_meta(synthetic=2)]) == 3

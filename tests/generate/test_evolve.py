"""Evolved prompts: variants that failed are eliminated, the others and their originals are answered, all add up."""

from __future__ import annotations

import json

import pytest

from llmdistill.config import Api, Evolve, Generate, Model, Prompts
from llmdistill.errors import ConfigError
from llmdistill.generate.evolve import num_requests, read_variant, variant_fault
from llmdistill.generate.stage import read, run
from llmdistill.run.files import read_table
from llmdistill.templates import EvolveTemplate, load_template
from tests.engines.loopback import Answer, chat, serving
from tests.runs import pipeline

EN, _ = load_template("prompts/en/evolve.yaml", EvolveTemplate)
KO, _ = load_template("prompts/ko/evolve.yaml", EvolveTemplate)
ORIGINAL = "Name a fruit that grows in Korea."


@pytest.mark.parametrize(
    ("reply", "variant"),
    [
        ("Name two fruits.", "Name two fruits."),
        ("New prompt: Name two fruits.", "Name two fruits."),
        ("Sure!\n**New Prompt:** Name two.\nThen one.", "Name two.\nThen one."),
        ("```text\nName two.\n```", "Name two."),
        ("````\nName ``` two.\n````", "Name ``` two."),
        ('"Name two."', "Name two."),
        ('"Name" and "two"', '"Name" and "two"'),
        ("<think>New prompt: no</think>\nName two.", "Name two."),
        ("<think>Name two.", ""),
        ("{{ prompt }} {% x %}", "{{ prompt }} {% x %}"),
        ("새 프롬프트: 과일 두 개", "새 프롬프트: 과일 두 개"),
    ],
)
def test_the_new_prompt_is_read_as_it_stands(reply, variant):
    assert read_variant(reply, EN) == variant


def test_the_korean_marker_is_read():
    assert read_variant("**새 프롬프트：** 과일 두 개", KO) == "과일 두 개"


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("Name two fruits that grow in Korea.", None),
        ("", "empty"),
        ("... ?! the of and", "empty"),
        ("name A fruit  that grows in Korea.", "no_change"),
        ("Here is the rewritten prompt. Name two.", "leaks_template"),
        ("#The Given Prompt# Name two.", "leaks_template"),
        ("Name two. " * 60, "over_long"),
        ("한국에서 나는 과일 두 가지를 말해 주세요.", "wrong_language"),
        ("Name a fruit\ud800", "empty"),
    ],
)
def test_a_failed_variant_is_eliminated(variant, reason):
    fault = variant_fault(ORIGINAL, variant, EN)
    assert (fault and fault[0]) == reason


def test_words_of_the_instruction_may_stand_where_the_original_has_them():
    assert variant_fault("Improve the given prompt.", "Improve the given prompt twice.", EN) is None


HELD_OUT = "Which fruit is held out?"
PROMPTS = [ORIGINAL, "한국의 수도는 어디인가요?", "What is ```` {{ instruction }}?", "Refuse this."]
VARIANTS = {
    (0, "deeper"): "Name two fruits that grow in Korea.",
    (0, "constrained"): ORIGINAL.upper(),
    (1, "deeper"): "한국의 수도는 어디이고 언제부터 수도였나요?",
    (1, "constrained"): "Where is the capital of Korea? Answer in one word.",
    (2, "deeper"): HELD_OUT,
    (2, "constrained"): "name two  FRUITS that grow in Korea.",
    (3, "constrained"): "Here is a new prompt",
}


def reply_to(seen) -> Answer:
    text = seen.body["messages"][-1]["content"]
    if "The text between the fences" not in text:
        return Answer(body=chat(f"An answer to: {text}"))
    number = next(index for index, prompt in enumerate(PROMPTS) if prompt in text)
    kind = "deeper" if EN.kinds["deeper"] in text else "constrained"
    if (number, kind) == (3, "deeper"):
        return Answer(400, {"error": {"message": "no"}})
    return Answer(body=chat(VARIANTS[number, kind], "length" if number == 3 else "stop"))


def settings_of(folder, url, **evolve):
    lines = [json.dumps({"prompt": text, "answer": "gold", "id": f"p{n}"}) for n, text in enumerate(PROMPTS)]
    (folder / "p.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "held.jsonl").write_text(json.dumps({"prompt": HELD_OUT}), "utf-8")
    prompts = Prompts(path=str(folder / "p.jsonl"), held_out_path=str(folder / "held.jsonl"))
    settings = Evolve(**{"kinds": ("deeper", "constrained"), **evolve})
    api = Api(base_url=url, max_concurrency=3, timeout=20, patience=20)
    return pipeline(
        folder / "run",
        prompts=prompts,
        teacher=Model(model="fake", engine="openai", api=api),
        generate=Generate(mode="evolve", evolve=settings, shard_size=5),
    )


def rows(settings):
    folder = settings.run_path / "generate"
    kept = [row for path in sorted(folder.glob("part-*.parquet")) for row in read_table(path).to_pylist()]
    return kept, read_table(folder / "rejects.parquet").to_pylist()


def test_originals_and_good_variants_are_answered_and_every_variant_is_accounted_for(tmp_path):
    with serving(reply_to) as server:
        settings = settings_of(tmp_path, server.url)
        read(settings)
        counts = run(settings).counts
        texts = [seen.body["messages"][-1]["content"] for seen in server.seen]
        run(settings)
        assert len(server.seen) == len(texts) == 8 + 6 <= num_requests(settings, 4)
    kept, rejects = rows(settings)
    wanted = [ORIGINAL, VARIANTS[0, "deeper"], PROMPTS[1], VARIANTS[1, "deeper"], *PROMPTS[2:]]
    assert [row["prompt"][-1]["content"] for row in kept] == wanted
    assert all(row["answer"] == f"An answer to: {row['prompt'][-1]['content']}" for row in kept)
    assert counts.input == 4 * 3
    assert counts.reasons == {
        "duplicate_prompt": 1,
        "held_out_prompt": 1,
        "no_change": 1,
        "refused": 1,
        "truncated": 1,
        "wrong_language": 1,
    }
    assert len({row["id"] for row in kept}) == len(kept)
    variant, original = kept[1], kept[0]
    meta = json.loads(variant["meta"])
    assert meta == {"evolved_from": original["id"], "kind": "deeper", "synthetic": 1}
    assert (original["reference"], variant["reference"]) == ("gold", None)
    assert any(f"`````\n{PROMPTS[2]}\n`````" in text for text in texts)
    assert {row["completion"][0]["content"] for row in rejects if row["completion"]} <= set(VARIANTS.values())


def test_without_the_originals_only_variants_count(tmp_path):
    with serving(reply_to) as server:
        settings = settings_of(tmp_path, server.url, keep_originals=False)
        read(settings)
        counts = run(settings).counts
    assert (counts.input, counts.kept) == (8, 2)


def test_another_kind_later_asks_only_for_what_is_new(tmp_path):
    with serving(reply_to) as server:
        settings = settings_of(tmp_path, server.url, kinds=("deeper",))
        read(settings)
        run(settings)
        before = len(server.seen)
        run(settings_of(tmp_path, server.url))
        assert len(server.seen) == before + 4


def test_a_template_without_a_wanted_kind_is_refused(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("user: '{{ prompt }} {{ instruction }}'\nprompt_marker: 'P:'\nkinds: {deeper: x}\n")
    with pytest.raises(ConfigError, match="no instruction for constrained"):
        run(settings_of(tmp_path, "http://127.0.0.1:9", template=str(path)))

"""Replies to a request for question-answer pairs, and what is to be read from each: pairs, or reasons."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Reply:
    """`found` lists (question, rationale, answer) for a pair and the reason for what is none."""

    name: str
    text: str
    found: list = field(default_factory=list)
    cut: bool = False
    prefill: str = ""


AB = '{"question": "a?", "answer": "b"}'
CD = '{"question": "c?", "answer": "d"}'
PAIR, NEXT = ("a?", None, "b"), ("c?", None, "d")

REPLIES = [
    # JSON
    Reply("json object", f'{{"pairs": [{AB}, {CD}]}}', [PAIR, NEXT]),
    Reply("json array", f"[{AB}, {CD}]", [PAIR, NEXT]),
    Reply("json single object", AB, [PAIR]),
    Reply(
        "json with rationale", '{"pairs": [{"question": "a?", "rationale": "r", "answer": "b"}]}', [("a?", "r", "b")]
    ),
    Reply("json empty rationale", '[{"question": "a?", "rationale": "", "answer": "b"}]', [PAIR]),
    Reply(
        "json extra keys", '{"pairs": [{"id": 1, "question": "a?", "level": "hard", "answer": "b"}], "n": 1}', [PAIR]
    ),
    Reply("json in a fence", f"```json\n[{AB}]\n```", [PAIR]),
    Reply("json in a bare fence with prose", f"Here they are:\n\n```\n[{AB}]\n```\nI hope this helps!", [PAIR]),
    Reply("json after prose", f"Sure! Here are the pairs.\n{AB}", [PAIR]),
    Reply("json lines", f"{AB}\n{CD}", [PAIR, NEXT]),
    Reply("json objects with commas", f"{AB},\n{CD}", [PAIR, NEXT]),
    Reply("several arrays", f"[{AB}]\n\n[{CD}]", [PAIR, NEXT]),
    Reply("several fences", f"```json\n{AB}\n```\nand\n```json\n{CD}\n```", [PAIR, NEXT]),
    Reply("json under another key", f'{{"questions": [{AB}]}}', [PAIR]),
    Reply("json capital keys", '[{"Question": "a?", "Answer": "b"}]', [PAIR]),
    Reply("json short keys", '[{"q": "a?", "a": "b"}]', [PAIR]),
    Reply("json Korean keys", '[{"질문": "수도는?", "풀이": "지리", "정답": "서울"}]', [("수도는?", "지리", "서울")]),
    Reply("json Korean text", '{"pairs": [{"question": "수도는?", "answer": "서울"}]}', [("수도는?", None, "서울")]),
    Reply("json number as answer", '[{"question": "a?", "answer": 42}]', [("a?", None, "42")]),
    Reply("json truth value as answer", '[{"question": "a?", "answer": true}]', ["unparsed"]),
    Reply("json list as answer", '[{"question": "a?", "answer": ["b"]}]', ["unparsed"]),
    Reply("json object as question", '[{"question": {"text": "a?"}, "answer": "b"}]', ["unparsed"]),
    Reply("json null answer", '[{"question": "a?", "answer": null}]', ["empty_answer"]),
    Reply("json without an answer", f'[{{"question": "x?"}}, {CD}]', ["empty_answer", NEXT]),
    Reply("json empty question", '[{"question": " ", "answer": "b"}]', ["empty_question"]),
    Reply("json without a question", '[{"answer": "b"}]', ["empty_question"]),
    Reply("json with raw line breaks", '[{"question": "a?\n1\n2", "answer": "b"}]', [("a?\n1\n2", None, "b")]),
    Reply("json with escapes", '[{"question": "caf\\u00e9?", "answer": "\\"b\\""}]', [("café?", None, '"b"')]),
    Reply("json trailing comma", f"[{AB}, {CD},]", [PAIR, NEXT]),
    Reply("json never closed", f'{{"pairs": [{AB}, {CD}]', [PAIR, NEXT]),
    Reply("json cut in the second", f'{{"pairs": [{AB}, {{"question": "c?", "ans', [PAIR, "truncated"], cut=True),
    Reply("json broken in the second", f'[{AB}, {{"question": "c?" "answer": "d"}}, {AB}]', [PAIR, "unparsed"]),
    Reply("json cut in the first", '{"pairs": [{"question": "a? and', ["truncated"], cut=True),
    Reply("json cut between", f'{{"pairs": [{AB},', [PAIR], cut=True),
    Reply("json whole, then cut", f"[{AB}]\n\nI hope that", [PAIR], cut=True),
    Reply("json key twice", f'[{{"question": "x", "question": "a?", "answer": "b"}}, {CD}]', ["unparsed"]),
    Reply("json part twice", '[{"question": "a?", "q": "c?", "answer": "b"}]', ["unparsed"]),
    Reply("json lone surrogate", '[{"question": "a\\ud800?", "answer": "b"}]', ["unparsed"]),
    Reply("json marker inside", '[{"question": "Question: a?", "answer": "Answer: b"}]', [PAIR]),
    Reply(
        "json with template names",
        '[{"question": "{{ pairs }}", "answer": "{{ examples }}"}]',
        [("{{ pairs }}", None, "{{ examples }}")],
    ),
    Reply(
        "json text that quotes json",
        '[{"question": "x {\\"question\\": \\"a?\\"}", "answer": "b"}]',
        [('x {"question": "a?"}', None, "b")],
    ),
    Reply("json empty array", '{"pairs": []}'),
    Reply("json of something else", '{"name": "x", "values": [1, 2]}'),
    Reply("json strings", '["a?", "b"]'),
    Reply("json nested too deep", '{"x": ' * 40 + AB + "}" * 40),
    # plain
    Reply("plain", "Question: a?\nAnswer: b\n\nQuestion: c?\nAnswer: d", [PAIR, NEXT]),
    Reply("plain after prefill", " a?\nAnswer: b\nQuestion: c?\nAnswer: d", [PAIR, NEXT], prefill="Question:"),
    Reply("plain with rationale", "Question: a?\nRationale: r\nmore\nAnswer: b", [("a?", "r\nmore", "b")]),
    Reply("plain rationale last", "Question: a?\nAnswer: b\nRationale: r", [("a?", "r", "b")]),
    Reply("plain numbered", "1. Question: a?\nAnswer: b\n2. Question: c?\nAnswer: d", [PAIR, NEXT]),
    Reply("plain numbered words", "Question 1: a?\nAnswer 1: b\n\nQuestion #2: c?\nAnswer #2: d", [PAIR, NEXT]),
    Reply("plain bold", "**Question:** a?\n**Answer:** b", [PAIR]),
    Reply("plain bold to the end", "**Question: a?**\n**Answer: b**", [PAIR]),
    Reply("plain list", "- Question: a?\n- Answer: b", [PAIR]),
    Reply("plain headings", "### Pair 1\nQuestion: a?\nAnswer: b\n\n### Pair 2\nQuestion: c?\nAnswer: d", [PAIR, NEXT]),
    Reply("plain rules", "Question: a?\nAnswer: b\n---\nQuestion: c?\nAnswer: d\n---", [PAIR, NEXT]),
    Reply("plain in a fence", "```\nQuestion: a?\nAnswer: b\n```", [PAIR]),
    Reply("plain letters", "Q: a?\nA: b\nQ: c?\nA: d", [PAIR, NEXT]),
    Reply("plain letters numbered", "Q1. a?\nA1. b"),
    Reply(
        "plain options are no answers", "Question: which?\nA: x\nB: y\nAnswer: A", [("which?\nA: x\nB: y", None, "A")]
    ),
    Reply("plain several lines", "Question: a?\n1 2\n3 4\nAnswer: b\nand b2", [("a?\n1 2\n3 4", None, "b\nand b2")]),
    Reply("plain on one line", "Question: a? Answer: b\nQuestion: c? Answer: d", [PAIR, NEXT]),
    Reply(
        "plain answer named in the question",
        'Question: what is "Answer:" for?\nAnswer: b',
        [('what is "Answer:" for?', None, "b")],
    ),
    Reply("plain two answers", "Question: a?\nAnswer: b\nAnswer: c", ["unparsed"]),
    Reply("plain without an answer", "Question: a?\nQuestion: c?\nAnswer: d", ["empty_answer", NEXT]),
    Reply("plain empty answer", "Question: a?\nAnswer:\nQuestion: c?\nAnswer: d", ["empty_answer", NEXT]),
    Reply("plain empty question", "Question:\nAnswer: b", ["empty_question"]),
    Reply("plain answer first", "Answer: b", ["empty_question"]),
    Reply(
        "plain cut in the answer", "Question: a?\nAnswer: b\nQuestion: c?\nAnswer: d and", [PAIR, "truncated"], cut=True
    ),
    Reply("plain cut in the question", "Question: a?\nAnswer: b\nQuestion: c and", [PAIR, "truncated"], cut=True),
    Reply("plain cut in the only one", "Question: a", ["truncated"], cut=True),
    Reply(
        "plain Korean",
        "질문: 수도는?\n풀이: 지리\n정답: 서울\n\n질문 2: 강은?\n정답: 한강",
        [("수도는?", "지리", "서울"), ("강은?", None, "한강")],
    ),
    Reply("plain Korean full-width colon", "**질문 1：** 수도는?\n**정답：** 서울", [("수도는?", None, "서울")]),
    Reply("plain Korean other word", "질문: 수도는?\n답: 서울", [("수도는?", None, "서울")]),
    Reply(
        "plain that quotes json",
        f"Question: what is this?\n{AB}\nAnswer: JSON",
        [(f"what is this?\n{AB}", None, "JSON")],
    ),
    Reply("plain with code", "Question: a?\nAnswer: ```\nx = 1\n# 1\n```", [("a?", None, "```\nx = 1\n# 1\n```")]),
    Reply(
        "plain with braces",
        "Question: {{ prompt }} {% x %}?\nAnswer: {0} %s",
        [("{{ prompt }} {% x %}?", None, "{0} %s")],
    ),
    Reply(
        "plain with a fence in it",
        "Question: a\n````\nAnswer it\n````\nAnswer: b",
        [("a\n````\nAnswer it\n````", None, "b")],
    ),
    Reply("plain after thoughts", "<think>Question: no\nAnswer: no</think>\nQuestion: a?\nAnswer: b", [PAIR]),
    Reply("plain after thoughts opened in the prompt", "Question: no</think>Question: a?\nAnswer: b", [PAIR]),
    # nothing
    Reply("thoughts that never end", "<think>\nQuestion: a?\nAnswer: b", cut=True),
    Reply("empty", ""),
    Reply("blank", " \n\n\t"),
    Reply("refusal", "I'm sorry, but I cannot help with that."),
    Reply("refusal in Korean", "죄송하지만 그 요청은 도와드릴 수 없습니다."),
    Reply("prose", "Bees make honey. What do bees make? Honey."),
    Reply("citation", "[1] says so, {see} also [2, 3]."),
    Reply("numbered questions", "1. What is a?\n2. What is c?"),
    Reply("prose that names the markers", "Write Question: first and Answer: then."),
]

"""Where a teacher's rationale ends and its answer begins."""

from __future__ import annotations

import pytest

from llmdistill.generate.replies import split_reply
from llmdistill.templates import TeacherTemplate, load_template

EN, _ = load_template("prompts/en/rationale.yaml", TeacherTemplate)
KO, _ = load_template("prompts/ko/rationale.yaml", TeacherTemplate)
PLAIN, _ = load_template("prompts/en/answer.yaml", TeacherTemplate)
OTHER = TeacherTemplate(user="{{ prompt }}", answer_marker="####")

SPLIT = [
    ("both parts", EN, "Rationale: two and two.\nAnswer: 4", ("two and two.", "4")),
    (
        "the last marker at a line start wins",
        EN,
        "Rationale: a\nAnswer: 3\nno, wait\nAnswer: 4",
        ("a\nAnswer: 3\nno, wait", "4"),
    ),
    (
        "a marker inside a line is text",
        EN,
        "Rationale: I write Answer: 3 here.\nAnswer: 4",
        ("I write Answer: 3 here.", "4"),
    ),
    (
        "a quoted marker after the answer is text",
        EN,
        'Answer: say "Answer: no" aloud',
        (None, 'say "Answer: no" aloud'),
    ),
    ("answer on the next line", EN, "Rationale: a\nAnswer:\n\n4\nand 5", ("a", "4\nand 5")),
    ("no rationale", EN, "Answer: 4", (None, "4")),
    ("no rationale marker", EN, "because\nAnswer: 4", ("because", "4")),
    ("bold marker", EN, "**Rationale:** a\n**Answer:** 4", ("a", "4")),
    ("bold marker, colon outside", EN, "**Rationale**: a\n**Answer**: 4", ("a", "4")),
    ("italic marker", EN, "_Rationale_: a\n__Answer:__ 4", ("a", "4")),
    ("heading marker", EN, "## Rationale: a\n### Answer: 4", ("a", "4")),
    ("bold answer", EN, "Rationale: a\nAnswer: the **best**", ("a", "the **best**")),
    ("indented marker", EN, "  Rationale: a\n  Answer: 4", ("a", "4")),
    ("carriage returns", EN, "Rationale: a\r\nAnswer: 4\r\n", ("a", "4")),
    ("missing marker", EN, "It is 4.", None),
    ("empty answer", EN, "Rationale: a\nAnswer:  \n", None),
    ("empty last answer", EN, "Answer: 3\nAnswer:", None),
    ("empty reply", EN, "", None),
    ("marker of another language", EN, "풀이: 둘\n정답: 4", None),
    ("marker inside a word", EN, "Reanswer: 4\nMyAnswer: 4", None),
    ("Korean", KO, "풀이: 둘 더하기 둘.\n정답: 4", ("둘 더하기 둘.", "4")),
    ("Korean, last wins", KO, "풀이: 가\n정답: 3\n다시\n정답: 4입니다", ("가\n정답: 3\n다시", "4입니다")),
    ("Korean, space before the colon", KO, "풀이 : 가\n정답 : 4", ("가", "4")),
    ("Korean, wide colon", KO, "풀이：가\n정답：4", ("가", "4")),
    ("Korean, bold", KO, "**풀이**: 가\n\n**정답:** 4", ("가", "4")),
    ("Korean, missing", KO, "답은 4입니다.", None),
    ("no markers wanted", PLAIN, "  Answer: 4 \n", (None, "Answer: 4")),
    ("marker without a colon", OTHER, "2+2\n#### 4", ("2+2", "4")),
    ("marker of regex characters", TeacherTemplate(user="x", answer_marker="(A)."), "(A). 4", (None, "4")),
    ("marker of regex characters is literal", TeacherTemplate(user="x", answer_marker="(A)."), "A, 4", None),
]


@pytest.mark.parametrize(("template", "reply", "expected"), [case[1:] for case in SPLIT], ids=[c[0] for c in SPLIT])
def test_reply_is_split(template, reply, expected):
    assert split_reply(reply, template) == expected


@pytest.mark.timeout(5)
@pytest.mark.parametrize("hostile", [" ", "*", "# ", "\n", ">", "Answer", "Answer *_", "Answer: \n", "정답 "])
def test_a_hostile_megabyte_is_read_at_once(hostile):
    text = hostile * (1_000_000 // len(hostile))
    for template in (EN, KO):
        split_reply(text, template)
        split_reply(text + "\nAnswer: x\n정답: x", template)

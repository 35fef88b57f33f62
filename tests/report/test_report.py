"""The report: complete, honest about what is absent, and inert whatever the models wrote."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from llmdistill.errors import DamagedError, StageError
from llmdistill.record import Verdict
from llmdistill.report.charts import draw_all, draw_choice
from llmdistill.report.compare import conclude
from llmdistill.report.curation import MAX_POINTS, Curation
from llmdistill.report.data import RunData, read_run
from llmdistill.report.stage import run
from llmdistill.report.words import clean, decimal, setting
from llmdistill.run.digest import flatten
from llmdistill.run.manifest import Counts, Manifest, Usage, read_manifest
from llmdistill.run.stage import write_records
from tests.report.run_dirs import Texts, bare_run, full_run, pipeline, record, table, write_decisions

TAGS = set(
    "html head meta title style body header main section article h1 h2 h3 p dl div dt dd table thead tbody tr th td "
    "small ul li span mark figure figcaption details summary code svg g path text".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name class scope colspan style dir d transform viewbox x y role aria-label".split()
)

EVIL = [
    "<script>alert(1)</script>",
    "</div></article><script src=https://example.org/x.js></script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "<svg onload=alert(1)><use href='https://example.org/#a'/></svg>",
    "</style></title><iframe src=//example.org></iframe>",
    "{{ 7 * 7 }}{% for x in y %}{# x #}",
    "<!-- ]]> <![CDATA[ <a href='data:text/html,x'>x</a>",
    "$\\frac{1}{0}$ & &lt;script&gt; &#60;b&#62;",
]


class Page(HTMLParser):
    """Tags, attributes and text of a page as a parser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def page_of(run_dir: Path, **changes) -> str:
    run(pipeline(run_dir, **changes))
    return (run_dir / "report" / "index.html").read_text("utf-8")


def assert_inert(html: str) -> Page:
    page = Page(html)
    assert set(page.tags) <= TAGS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    assert not any("url(" in value or "javascript:" in value for _, value in page.attributes)
    return page


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def test_page_shows_every_piece_of_a_run(run_dir):
    full_run(run_dir, measured=True)
    page = assert_inert(page_of(run_dir))
    assert page.tags.count("svg") == 6
    for words in (
        "fell from 2.00 to 0.40",
        "rose from 30.0",
        "low_score: 20",
        "unparsed: 5",
        "134.5\u00a0M",
        "0.38 to 0.42",
    ):
        assert words in page.text
    assert "the the the" in page.text and "prompts.jsonl:7" in page.text
    assert "12 of the kept prompts are held out" in page.text


def test_page_asks_no_server_and_forbids_it(run_dir):
    full_run(run_dir)
    html = page_of(run_dir)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html


@pytest.fixture(scope="module")
def harmless_tags(tmp_path_factory):
    """The tags of a page on which nobody attacks."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    full_run(run_dir)
    return Page(page_of(run_dir)).tags


@pytest.mark.parametrize("evil", EVIL)
def test_untrusted_text_stays_text_wherever_it_enters(run_dir, harmless_tags, evil):
    replies = {"teacher": evil, "untrained": evil, "student": evil, evil: evil}
    full_run(run_dir, Texts(evil, evil, evil, evil, evil, evil, evil, replies))
    name = evil.replace("/", "").replace("\\", "").strip(".")[:100]
    page = assert_inert(page_of(run_dir, name=name, report={"title": evil}, teacher={"model": evil}))
    assert set(page.tags) == set(harmless_tags)
    assert page.text.count(evil) >= 10


def test_bar_class_of_the_funnel_never_comes_from_data(run_dir):
    full_run(run_dir, Texts(reason='kept" onclick="x'))
    page = assert_inert(page_of(run_dir))
    classes = {value for name, value in page.attributes if name == "class"}
    assert not any("onclick" in value for value in classes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone\x9d0;t\x9cend", "goneend"),
        ("a\x00b\x08c\x7fd\x85e", "abcde"),
        ("one\r\ntwo\rthree\tfour\n", "one\ntwo\nthree\tfour\n"),
        ("\ud800 alone", "\ufffd alone"),
        ("한국어 😀 \u2028 line", "한국어 😀 \u2028 line"),
        ("\x1b", ""),
        ("\x1b[", ""),
    ],
)
def test_terminal_escapes_and_controls_are_stripped_and_letters_stay(text, expected):
    assert clean(text) == expected


def test_page_holds_no_control_character_and_is_utf8(run_dir):
    odd = "\x1b[2J\x1b]0;x\x07\x00\x08한글\u2028\u202e\ufffe"
    replies = {"teacher": odd, "untrained": "", "student": odd}
    full_run(run_dir, Texts(odd, odd, detail=odd, where=odd, row="\ud800\x1b[31m", replies=replies))
    page = assert_inert(page_of(run_dir))
    assert not [c for c in page.text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    assert "[2J" not in page.text and "한글\u2028" in page.text


def test_hangul_comes_through_with_its_language_and_fonts(run_dir):
    full_run(run_dir, Texts("화성의 위성은 몇 개입니까?", "두 개입니다."))
    html = page_of(run_dir, language="ko", name="화성")
    assert '<html lang="ko">' in html and "화성의 위성은 몇 개입니까?" in html and "Run 화성" in html
    assert '"Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif' in html


def test_page_of_a_run_with_nothing_to_show_says_so(run_dir):
    bare_run(run_dir)
    page = assert_inert(page_of(run_dir, filter={"judge": None}))
    for words in (
        "no held-out prompt was measured",
        "no scores",
        "Nothing was rejected",
        "No held-out prompt was answered",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 1


def test_a_piece_that_is_gone_costs_only_that_piece(run_dir):
    full_run(run_dir)
    for name in ("curate/decisions.parquet", "evaluate/part-00000.parquet", "filter/rejects.parquet"):
        (run_dir / name).unlink()
    page = assert_inert(page_of(run_dir))
    assert page.tags.count("svg") == 3 and "fell from 2.00" in page.text


def test_same_run_gives_the_same_bytes(run_dir):
    full_run(run_dir)
    first = page_of(run_dir)
    second = page_of(run_dir, report={"samples": 7})
    assert page_of(run_dir) == first != second


def test_same_command_again_does_nothing(run_dir):
    full_run(run_dir)
    page = run_dir / "report" / "index.html"
    page_of(run_dir)
    page.write_text("kept")
    assert page_of(run_dir) == "kept"
    page.unlink()
    assert "Did it help?" in page_of(run_dir)


def test_page_is_made_anew_when_only_a_time_or_a_device_changed(run_dir):
    full_run(run_dir)
    page_of(run_dir)
    assert "cuda:7" in page_of(run_dir, teacher={"model": "big", "device": "cuda:7"})
    manifest = read_manifest(run_dir / "train")
    assert manifest
    slower = Usage(seconds=7_300.0)
    Manifest(**{**{k: getattr(manifest, k) for k in Manifest.__dataclass_fields__}, "usage": slower}).write(
        run_dir / "train"
    )
    assert "2 h 01 min" in page_of(run_dir, teacher={"model": "big", "device": "cuda:7"})


def test_unfinished_run_names_the_missing_stage(run_dir):
    full_run(run_dir)
    (run_dir / "evaluate" / "manifest.json").unlink()
    with pytest.raises(StageError, match="evaluate"):
        page_of(run_dir)


@pytest.mark.parametrize("name", ["curate/decisions.parquet", "filter/rejects.parquet", "evaluate/part-00000.parquet"])
def test_torn_file_is_named(run_dir, name):
    full_run(run_dir)
    path = run_dir / name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedError, match=path.name):
        page_of(run_dir)


def test_every_setting_is_shown_with_its_value(run_dir):
    full_run(run_dir)
    wanted = pipeline(run_dir, prompts={"path": "p.jsonl", "system": "<b>Be brief</b>"}, train={"lora": {"r": 3}})
    run(wanted)
    text = Page((run_dir / "report" / "index.html").read_text("utf-8")).text
    for key, value in flatten(wanted.model_dump(mode="json")).items():
        assert f"{key}{setting(value)}\n" in text


def test_scores_are_those_of_the_last_verdicts(tmp_path):
    path = tmp_path / "filter" / "part-00000.parquet"
    verdicts = [[4.0, None, 2.0], [], [None], [5.0]]
    records = [record("q", i) for i in range(len(verdicts))]
    for item, scores in zip(records, verdicts, strict=True):
        item.verdicts.extend(Verdict("j", "h", score, "parsed" if score else "no_mass") for score in scores)
    write_records(path, records)
    found = read_run(tmp_path, 1).scores_kept
    assert found.tolist() == [item.score for item in records if item.score is not None] == [2.0, 5.0]


def test_big_map_is_thinned_and_says_so(tmp_path):
    path = tmp_path / "curate" / "decisions.parquet"
    write_decisions(path, 50_000)
    data = read_run(tmp_path, 1)
    assert len(data.curation.places_chosen) + len(data.curation.places_other) == MAX_POINTS
    chart = draw_choice(data)[0]
    assert "2,000 of 50,000" in chart.caption
    assert len(chart.svg) < 100_000


def test_charts_survive_odd_numbers():
    one = np.array([3.0])
    history = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.5}, {"loss": 1.0}, {"step": "x", "loss": True}]
    train = Manifest("train", "d", {}, Counts(0, 0, 0), Usage(), {}, {"history": history})
    place = np.zeros((1, 2))
    data = RunData({"train": train}, one, one[:0], np.zeros(3), one, curation=Curation(place, num_places=1))
    charts = [*draw_all(data, 3.0), *draw_choice(data)]
    assert [chart.title for chart in charts] == ["Judge scores", "Reply lengths", "Training loss", "What was chosen"]
    assert not any("nan" in chart.svg for chart in charts)


def test_long_history_stays_small():
    history = [{"step": i, "loss": 1 / i} for i in range(1, 100_001)]
    train = Manifest("train", "d", {}, Counts(0, 0, 0), Usage(), {}, {"history": history})
    assert len(draw_all(RunData({"train": train}), None)[0].svg) < 60_000


@pytest.mark.parametrize(
    ("kl", "top1", "tone", "words"),
    [
        (0.4, 0.8, "better", "Training helped."),
        (3.0, 0.1, "worse", "did not help"),
        (0.4, 0.1, "unclear", "mixed"),
        (2.02, 0.301, "unclear", "no clear difference"),
        (2.0, 0.3, "unclear", "stayed at 2.00"),
    ],
)
def test_conclusion_says_what_the_numbers_say(kl, top1, tone, words):
    found = conclude(table(kl, top1), 12)
    assert found.tone == tone and words in found.text


def test_conclusion_without_numbers_claims_nothing():
    broken = {"untrained": {"teacher_text_kl": None}, "student": {"teacher_text_kl": {"mean": float("nan")}}}
    assert conclude({}, 0).tone == conclude(broken, 3).tone == "none"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0"), (0.0004, "0.0004"), (0.25, "0.25"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_decimals_keep_what_matters(value, expected):
    assert decimal(value) == expected

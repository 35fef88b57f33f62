"""The page of a comparison: complete, self-contained, and inert whatever names hold."""

from html.parser import HTMLParser

import pytest

from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.report import axis_of, conclude, render
from llmdistill.vision.kd.table import table_of

TAGS = set(
    "html head meta title style body header main section h1 h2 h3 p dl div dt dd table thead tbody tr th td "
    "figure figcaption details summary code svg text line circle polyline".split()
)
EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "\x1b[31m한글 이름"]
TEACHER = {"test": 0.99, "parameters": 85_002, "seconds": 3.0, "measures": {"fgsm": 0.4}, "validation": [0.8, 0.97]}


class Page(HTMLParser):
    """Tags, attributes and text of a page as a parser sees them."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def made(label="response", seeds=(0, 1, 2)):
    """A pipeline, and rows as a run gives them."""
    pipeline = KdPipeline.model_validate(
        {
            "name": "숫자",
            "student": {"arch": "mlp", "width": 16},
            "teacher": {"arch": "mlp", "width": 256},
            "protocol": {"seeds": list(seeds)},
            "methods": [{"name": "plain"}, {"name": "response", "label": label}],
            "measure": ["fgsm"],
        }
    )
    rows = [
        {
            "method": method.title,
            "seed": seed,
            "test": 0.9 + 0.01 * number + 0.0001 * seed,
            "seconds": 2.0 + number,
            "parameters": 1210,
            "validation": [0.5, 0.7 + 0.1 * number, 0.9],
            "measures": {"fgsm": 0.25, "agreement": 0.75},
        }
        for number, method in enumerate(pipeline.methods)
        for seed in seeds
    ]
    return pipeline, table_of(pipeline, TEACHER, rows), rows


def page(*made_):
    pipeline, table, rows = made_
    return Page(render(pipeline, table, TEACHER, rows))


class TestPage:
    def test_it_holds_what_was_measured_under_which_protocol(self):
        pipeline, table, rows = made()
        text = page(pipeline, table, rows).text
        for shown in (
            pipeline.protocol.hash(pipeline.data),
            "숫자",
            "91.01",
            "+1.00",
            "1.50",
            "1,210",
            "85,002",
            "25.00",
        ):
            assert shown in text, shown
        assert "agreement 0.75" in text
        assert "protocol.learning_rate" in text

    @pytest.mark.parametrize("label", EVIL)
    def test_a_name_is_text_and_nothing_else(self, label):
        found = page(*made(label))
        assert set(found.tags) <= TAGS
        assert not {"src", "href", "onerror", "onload"} & set(found.attributes)
        assert "49" not in found.attributes.get("aria-label", [])
        assert label.replace("\x1b[31m", "") in found.text

    def test_every_method_has_a_curve_and_a_line_of_the_spread(self):
        found = page(*made())
        assert found.attributes["class"].count("own") == 3
        assert found.attributes["class"].count("plain") == 2
        assert found.attributes["class"].count("mean") == 3
        assert found.attributes["class"].count("seed") == 6

    def test_points_lie_inside_the_charts(self):
        for points in page(*made()).attributes["points"]:
            for point in points.split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= 300 and 0 <= y <= 150


class TestConclusion:
    def test_it_names_the_methods_that_help(self):
        assert conclude(made()[1]) == "Better than plain training: response."

    def test_one_seed_proves_nothing(self):
        assert conclude(made(seeds=(0,))[1]).startswith("One seed")


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.9123, 0.9127], [0.1, 0.95], [1.0, 1.0]], ids=str)
def test_a_scale_holds_its_values_between_round_ticks(values):
    axis = axis_of(values)
    assert axis.low <= min(values) and max(values) <= axis.high + 1e-9
    assert 2 <= len(axis.ticks) <= 8
    assert axis.place(axis.low, 100) == 0 and axis.place(axis.high, 100) == 100

"""The search: on the validation part only, within its budget, its winner a plain pipeline file."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_digits

from llmdistill.errors import ConfigError, StageError
from llmdistill.pipeline_file import load_as
from llmdistill.vision.kd import space
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.run import run
from llmdistill.vision.kd.search import SearchPipeline, best_of, search
from llmdistill.vision.kd.trials import falls_behind

FILE = "pipelines/vision/digits-search.yaml"
CHEAP = ["protocol.epochs=4", "protocol.seeds=[0,1]", "teacher_protocol={epochs: 20, seeds: [0]}"]
SMALL = [*CHEAP, "search.trials=9", "search.num_seeds=1"]
CLOCK = ("seconds",)


def pipeline(run_dir, *more):
    return load_as(SearchPipeline, FILE, [*SMALL, f"run_dir={run_dir}", *more])


def timeless(rows):
    """Trials without what depends on the clock, in their order."""
    rows = sorted(rows, key=lambda row: row["number"])
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def drawn_in(result):
    return [row["params"] for row in timeless(result["rows"]) if not row["hand_set"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing disturbed: its folder and its result."""
    folder = tmp_path_factory.mktemp("탐색")
    return folder, search(pipeline(folder))


class TestSearch:
    def test_the_winner_is_at_least_as_good_on_validation_as_what_was_set_by_hand(self, whole):
        _, result = whole
        by_hand = [row["validation"] for row in result["rows"] if row["hand_set"]]
        assert len(by_hand) == 2
        assert result["winner"]["validation"] >= max(by_hand)

    def test_a_bad_setting_is_beaten(self, tmp_path):
        bad = "methods=[{name: plain}, {name: response, soft_weight: 0.001, hard_weight: 0.001, label: 나쁨}]"
        result = search(pipeline(tmp_path, bad))
        rows = {row["title"]: row for row in result["rows"] if row["hand_set"]}
        assert best_of(result["rows"], hand_set=False)["validation"] > rows["나쁨"]["validation"]

    def test_every_trial_is_accounted_for_and_there_are_no_more_than_allowed(self, whole):
        _, result = whole
        ends = result["num_finished"] + result["num_pruned"] + result["num_failed"]
        assert ends == result["num_trials"] == len(result["rows"]) == 9

    def test_the_winner_is_a_plain_pipeline_file_whose_run_is_done(self, whole):
        folder, result = whole
        found = load_as(KdPipeline, str(folder / "winner.yaml"))
        assert [method.title for method in found.methods[:2]] == ["plain", "response"]
        winner = result["winner"]
        assert {**winner["settings"], "label": None} in [
            {**method.model_dump(mode="json"), "label": None} for method in found.methods
        ]
        written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
        assert run(found) == result["table"]
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == written

    def test_another_seed_draws_other_settings(self, whole, tmp_path):
        other = search(pipeline(tmp_path, "search.seed=1", "search.trials=4", "protocol.epochs=1"))
        assert not any(params in drawn_in(whole[1]) for params in drawn_in(other))

    def test_more_trials_go_on_from_those_there_are(self, tmp_path):
        few = search(pipeline(tmp_path, "protocol.epochs=2", "search.trials=4"))
        more = search(pipeline(tmp_path, "protocol.epochs=2", "search.trials=6"))
        assert timeless(more["rows"])[:4] == timeless(few["rows"])
        assert more["num_trials"] == 6

    def test_a_training_that_goes_wrong_is_a_failed_trial(self, tmp_path):
        wild = "search.space=[{name: response, soft_weight: {choices: [1.0e+38]}, temperature: {low: 1, high: 2}}]"
        result = search(pipeline(tmp_path, wild, "search.trials=4", "protocol.epochs=1"))
        failed = [row for row in result["rows"] if row["state"] == "failed"]
        assert len(failed) == result["num_failed"] == 2
        assert all("in epoch 1" in row["detail"] for row in failed)
        assert result["winner"]["hand_set"]


class TestTestPart:
    def npz(self, path, test_labels):
        digits = load_digits()
        images, labels = np.round(digits.images * 15).astype(np.uint8), digits.target.astype(np.int64)
        shuffled = test_labels(labels[1400:])
        parts = {"train_images": images[:1400], "train_labels": labels[:1400]}
        np.savez(path, **parts, test_images=images[1400:], test_labels=shuffled)
        return path

    def test_the_search_is_the_same_whatever_the_test_part_holds(self, tmp_path):
        results = []
        for name, change in {"right": lambda labels: labels, "wrong": lambda labels: (labels + 1) % 10}.items():
            data = self.npz(tmp_path / f"{name}.npz", change)
            short = ["protocol.epochs=2", "search.trials=5", f"data={{path: {data}, limit: 300}}"]
            results.append(search(pipeline(tmp_path / name, *short)))
        right, wrong = results
        assert timeless(right["rows"]) == timeless(wrong["rows"])
        assert right["winner"] == wrong["winner"]
        assert right["table"]["teacher"]["test"] > 0.5 > wrong["table"]["teacher"]["test"]


class TestBudget:
    def test_the_time_is_kept_and_a_longer_one_goes_on(self, tmp_path):
        with pytest.raises(StageError, match=r"no trial ended within the budget -> raise search\.seconds"):
            search(pipeline(tmp_path, "search.seconds=0.000001", "protocol.epochs=1"))
        found = search(pipeline(tmp_path, "search.seconds=1000", "search.trials=3", "protocol.epochs=1"))
        assert found["num_trials"] == 3

    def test_a_trial_in_the_lowest_quarter_falls_behind(self):
        assert falls_behind(0.5, [0.6, 0.7, 0.8, 0.9])
        assert not falls_behind(0.68, [0.6, 0.7, 0.8, 0.9])
        assert not falls_behind(0.1, [0.6, 0.7, 0.8])

    def test_what_was_set_by_hand_is_never_ended_early(self, tmp_path):
        labels = [f"{{name: response, label: m{number}, hard_weight: {0.5 / 10**number}}}" for number in range(6)]
        result = search(pipeline(tmp_path, f"methods=[{', '.join(labels)}]", "search.trials=6", "protocol.epochs=2"))
        assert result["num_finished"] == 6


class TestSpace:
    def test_values_are_drawn_within_their_ranges_and_kinds(self, whole):
        for row in whole[1]["rows"]:
            if not row["hand_set"]:
                settings = row["settings"]
                assert 1 <= settings["temperature"] <= 16
                assert 0.1 <= settings["soft_weight"] <= 1
                assert settings["hard_weight"] in (0, 0.1, 0.5)

    def test_choices_may_be_layer_pairs_and_lie_deep(self):
        entry = {
            "name": "assistant",
            "assistants": [{"arch": "mlp", "width": {"low": 8, "high": 64, "log": True, "integer": True}}],
            "layers": {"choices": [[["blocks.0", "blocks.1"]], None]},
        }
        asked = []
        found = space.drawn(entry, "assistant", lambda name, free: asked.append(name) or free.ends()[0])
        assert asked == ["assistant.assistants.0.width", "assistant.layers"]
        assert found["assistants"][0]["width"] == 8 and found["layers"] == [["blocks.0", "blocks.1"]]

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"name": "respnse"}, "respnse"),
            ({"name": "response", "temperature": {"low": 4, "high": 2}}, "low is 4, which is not below high, 2"),
            ({"name": "response", "temperature": {"low": 0, "high": 2}}, "greater than 0"),
            ({"name": "response", "temperature": {"low": 0, "high": 2, "log": True}}, "begins above 0"),
            ({"name": "response", "temperature": {"choices": [1, "뜨겁게"]}}, "valid number"),
            ({"name": "response", "temperature": {"choices": []}}, "at least 1 item"),
            ({"name": "response", "warmth": {"choices": [1]}}, "warmth"),
        ],
        ids=str,
    )
    def test_a_space_that_cannot_be_drawn_from_is_one_line(self, tmp_path, entry, message):
        with pytest.raises(ConfigError, match=message) as caught:
            pipeline(tmp_path, f"search.space=[{json.dumps(entry)}]")
        assert "\n" not in str(caught.value)

    def test_two_entries_of_one_name_need_labels(self):
        with pytest.raises(ValidationError, match="give them labels"):
            SearchPipeline.model_validate(
                {
                    "name": "x",
                    "student": {},
                    "teacher": {},
                    "methods": [{"name": "plain"}],
                    "search": {"space": [{"name": "response"}, {"name": "response"}]},
                }
            )

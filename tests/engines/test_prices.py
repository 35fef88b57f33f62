"""Prices: in their order, never zero for what is not known, and one line for a table that cannot be used."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdistill.config import Api, Model, Price
from llmdistill.engines.prices import (
    OLD_DAYS,
    TABLE_VARIABLE,
    ListPrice,
    _shipped_table,
    age_in_days,
    cost_of,
    price_of,
)
from llmdistill.errors import ConfigError

OWN = """
prices:
  - host: api.openai.com
    source: https://example.org/contract
    as_of: 2026-01-31
    batch: 0.4
    models:
      gpt-5-mini: {input: 7, output: 8}
      gpt-4.1: null
  - source: https://example.org/any
    as_of: 2026-01-31
    models:
      house-model: {input: 1, output: 2}
"""


@pytest.fixture(autouse=True)
def no_table_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (TABLE_VARIABLE, "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_table(monkeypatch, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    monkeypatch.setenv(TABLE_VARIABLE, str(path))
    return path


def served(model: str = "gpt-5-mini", price: Price | None = None, **api) -> Model:
    return Model(model=model, engine="openai", price=price, api=Api(**api))


def amounts(settings: Model) -> tuple[float, float] | None:
    price = price_of(settings)
    return None if price is None else (price.input, price.output)


def test_the_pipeline_files_price_goes_before_every_other(own_table):
    given_price = Price(input=3, output=4)
    assert price_of(served(price=given_price)) == given_price
    assert price_of(served(price=given_price, base_url="http://127.0.0.1:1/v1")) == given_price
    assert price_of(Model(model="m", price=given_price)) == given_price


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_local_engines_cost_nothing(engine):
    assert amounts(Model(model="gpt-5-mini", engine=engine)) == (0, 0)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "llm.localhost"])
def test_a_server_on_this_machine_costs_nothing(host):
    assert amounts(served("anything", base_url=f"http://{host}:8000/v1")) == (0, 0)


def test_the_users_table_goes_before_the_shipped_one_and_fills_its_gaps(own_table):
    assert amounts(served()) == (7, 8)
    assert amounts(served("gpt-4.1")) is None
    assert amounts(served("gpt-4.1-mini")) == (0.4, 1.6)
    assert amounts(served("house-model", base_url="https://llm.example.org/v1")) == (1, 2)


def test_the_table_in_the_home_folder_is_found(tmp_path):
    path = tmp_path / ".config" / "llmdistill" / "prices.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OWN)
    assert amounts(served()) == (7, 8)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("gpt-unheard-of", "https://api.openai.com/v1"),
        ("gpt-5-mini", "https://gateway.example.org/v1"),
        ("gpt-5-minimal", "https://api.openai.com/v1"),
        ("gpt-5-mini-2025", "https://api.openai.com/v1"),
        ("gpt-4o-2024-05-13", "https://api.openai.com/v1"),
        ("gpt-5-mini", "https://api.openai.com.example.org/v1"),
        ("gpt-5-mini", "https://[broken/v1"),
    ],
)
def test_what_no_table_lists_is_unknown_and_not_zero(model, url):
    assert price_of(served(model, base_url=url)) is None


@pytest.mark.parametrize("name", ["gpt-5-mini", "gpt-5-mini-2025-08-07", "gpt-5-mini-20250807"])
def test_a_dated_snapshot_costs_what_its_model_costs(name):
    assert amounts(served(name)) == (0.25, 2)


def test_the_default_server_is_the_one_of_the_environment(monkeypatch):
    assert amounts(served()) == (0.25, 2)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert amounts(served()) == (0, 0)


def test_of_several_servers_the_dearest_counts_and_one_unknown_makes_all_unknown():
    known, here = "https://api.openai.com/v1", "http://localhost:1/v1"
    assert amounts(served(base_url=(here, known))) == (0.25, 2)
    assert amounts(served(base_url=(here, known, "https://example.org/v1"))) is None


def test_a_batch_costs_its_part_only_where_the_table_says_so():
    listed, own = price_of(served()), Price(input=0.25, output=2)
    assert cost_of(listed, 1e6, 1e6, batch=False) == pytest.approx(2.25)
    assert cost_of(listed, 1e6, 1e6, batch=True) == pytest.approx(1.125)
    assert cost_of(own, 1e6, 1e6, batch=True) == pytest.approx(2.25)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 1e3), st.floats(0, 1e3))
def test_cost_is_the_sum_of_both_kinds_of_tokens(read, written, price_in, price_out):
    price = Price(input=price_in, output=price_out)
    whole = cost_of(price, read, written, False)
    parts = cost_of(price, read, 0, False) + cost_of(price, 0, written, False)
    assert whole == pytest.approx(parts) == pytest.approx(read / 1e6 * price_in + written / 1e6 * price_out)


def test_age_is_counted_in_days_and_only_tables_age():
    listed = ListPrice(input=1, output=1, source="https://x.org", as_of=datetime.date(2026, 1, 1))
    assert age_in_days(listed, datetime.date(2026, 1, 1) + datetime.timedelta(days=OLD_DAYS + 1)) == OLD_DAYS + 1
    assert age_in_days(Price(input=1, output=1)) is None and age_in_days(None) is None


HEAD = "prices:\n  - {host: h, source: s, as_of: 2026-01-01, "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file"),
        ("prices: 3", "prices"),
        ("prices:\n  - {host: h, source: s}", "prices.0.as_of"),
        (HEAD + "models: {m: {input: -1, output: 2}}}", "prices.0.models.m.input"),
        (HEAD + "models: {m: {input: .inf, output: 2}}}", "prices.0.models.m.input"),
        (HEAD + "models: {m: {input: yes, output: 2}}}", "prices.0.models.m.input"),
        (HEAD + "models: {m: {input: 1}}}", "prices.0.models.m.output"),
        (HEAD + "modls: {}}", "prices.0"),
        (HEAD + "batch: 2, models: {}}", "prices.0.batch"),
        ("prices:\n  - host: [", ":2"),
        ("prices: {as_of: 2026-13-45}", "month"),
        ("prices: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: &a [*a]", "prices"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), ""),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line_with_file_and_key(own_table, text, words):
    own_table.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        price_of(served())
    line = str(caught.value)
    assert str(own_table) in line and words in line and "\n" not in line and caught.value.exit_code == 2


def test_a_table_that_is_named_and_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(TABLE_VARIABLE, str(tmp_path / "no.yaml"))
    with pytest.raises(ConfigError, match=r"no\.yaml.*cannot be read"):
        price_of(served())


def test_every_shipped_price_has_a_source_a_past_date_and_two_amounts():
    for host in _shipped_table().prices:
        assert host.source.startswith("https://") and host.as_of <= datetime.date.today() and 0 < host.batch <= 1
        for name, entry in host.models.items():
            assert entry is None or 0 < entry.input <= entry.output, name

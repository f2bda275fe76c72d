import pandas as pd
import pytest

from credit_common.contract import load_contract
from credit_simulations.data import contract_path, prepare
from credit_simulations.sources.reviews import SOURCE, TOPICS, holder_of


def read(positive: str, negative: str) -> pd.DataFrame:
    files = {"reviews-pos.txt": positive, "reviews-neg.txt": negative}
    return SOURCE.read({name: text.encode() for name, text in files.items()})


@pytest.fixture(scope="module")
def frame():
    return pd.read_parquet(prepare("reviews"))


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("酒店房间不大, 早餐一般", "hotels"),
        ("这本书的作者", "books"),
        ("键盘手感好", "electronics"),
        ("在酒店看书", "hotels"),  # of two topics with one word each, the first
        ("在酒店看书, 故事好", "books"),
        ("不错", "other"),
        ("", "other"),
    ],
)
def test_the_topic_with_most_words_has_the_review(text, holder):
    assert holder_of(text) == holder


def test_a_review_is_kept_once_and_its_id_is_its_first_line():
    frame = read("好\n很  好\n好\n很 好\n", " \n差\n")
    assert frame["text"].tolist() == ["好", "很 好", "差"]
    assert frame["client_id"].tolist() == ["review-000001", "review-000002", "review-000006"]
    assert frame["sentiment"].tolist() == ["positive", "positive", "negative"]


def test_a_text_with_both_labels_is_left_out():
    assert read("优点:\n好\n", "优点:\n差\n优点:\n")["text"].tolist() == ["好", "差"]


def test_only_a_line_feed_ends_a_review():
    assert read("好\u2028好\x0b好\n", "差\n")["text"].tolist() == ["好 好 好", "差"]


@pytest.mark.slow
def test_no_review_has_a_twin(frame):
    assert not frame["text"].duplicated().any()
    assert not frame["text"].eq("").any()
    assert frame["client_id"].iloc[0] == "review-000001"
    last = frame["client_id"].str.removeprefix("review-").astype(int)
    assert last.is_monotonic_increasing
    assert last.max() <= 16_548 + 18_576


@pytest.mark.slow
def test_topics_have_reviews_of_both_labels(frame):
    counts = frame.groupby(["holder", "sentiment"]).size()
    assert set(frame["holder"]) == {*TOPICS, "other"}
    assert len(counts) == 8
    assert counts.min() > 1_000


def test_the_contract_trains_on_text_alone():
    contract = load_contract(contract_path("reviews"))
    assert contract.model.train == ("lora", "head")
    assert contract.wide_fields == ()

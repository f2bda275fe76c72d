"""The report as text and as a page: nothing from outside, nothing unescaped, never rounded down."""

import copy
import html
import re

import pytest

from credit_client.ledger import Ledger
from credit_client.report.page import as_html
from credit_client.report.statement import privacy_report
from credit_client.report.text import as_text
from credit_client.terminal import WIDTH

EVIL = '<script>alert(1)</script><img src="http://evil.example/x"> & "quoted" `code` \x1b[2J'
TITLES = (
    "The answer",
    "For whom it holds, and against whom",
    "How users are hidden",
    "How epsilon was computed",
    "What left this holder",
    "What never leaves",
    "The ledger",
    "How the settings were chosen",
    "Attacks that were tried",
    "What is not claimed",
    "How to check this report",
)
ARM = {
    "name": "as shipped",
    "kind": "sound",
    "claimed_epsilon": 2.0,
    "lower_bound": 0.451,
    "confidence": 0.95,
    "canaries": 1000,
    "caught": False,
}


@pytest.fixture(scope="module")
def report(enrolled, answer):
    identity = enrolled()
    answer(identity, "adapter", "histogram", "adapter")
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        return privacy_report(identity, ledger, {"arms": [ARM]})


@pytest.fixture
def changed(report):
    def make(**changes):
        return {**copy.deepcopy(report), **changes}

    return make


@pytest.fixture
def lost(changed):
    word = {"sequence": 4, "time": "2026-05-04T10:11:12+00:00", "reason": EVIL, "counter": 7}
    return changed(
        epsilon=None,
        epsilon_replace_one=None,
        epsilon_shared=None,
        meaning=None,
        budget_left=None,
        lost_entries=3,
        overrides=[word],
    )


def test_the_page_is_well_formed_and_has_all_its_titles(report, parsed_page):
    page = parsed_page(as_html(report))
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for title in TITLES:
        assert title in page.text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) == len(TITLES)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} == set(ids)


def test_the_page_has_no_script_and_nothing_from_outside(report, parsed_page):
    text = as_html(report)
    page = parsed_page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "base", "form"}
    for _, attrs in page.tags:
        assert not {"src", "href", "srcset", "style", "action"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def strings_replaced(plain, by):
    """Every string of a report, but for those that are read as JSON, hex or a time."""
    kept = {"event", "public_key", "time", "created", "kind"}
    if isinstance(plain, dict):
        return {k: v if k in kept else strings_replaced(v, by) for k, v in plain.items()}
    if isinstance(plain, list):
        return [strings_replaced(each, by) for each in plain]
    return by if isinstance(plain, str) else plain


def test_whatever_a_report_says_is_text_and_never_markup(report, lost, parsed_page):
    for each in (report, lost):
        usual, evil = parsed_page(as_html(each)), parsed_page(as_html(strings_replaced(each, EVIL)))
        kinds = {tag for tag, _ in evil.tags}
        assert not kinds & {"script", "img"}
        assert kinds <= {tag for tag, _ in usual.tags} | {"code"}
        assert "<script>alert(1)</script>" in evil.text
        for _, attrs in evil.tags:
            assert set(attrs) <= {name for _, known in usual.tags for name in known}


def test_words_of_people_are_escaped(changed, lost):
    purpose = as_html(changed(purpose=EVIL, audit={"arms": [{**ARM, "name": EVIL}]}))
    for text in (purpose, as_html(lost)):
        assert "<script" not in text
        assert "<img" not in text
        assert html.escape('<script>alert(1)</script><img src="http://evil.example/x">') in text


def test_text_fits_a_terminal_and_cannot_steer_it(report, lost, changed):
    for each in (report, lost, strings_replaced(report, EVIL), changed(purpose="x" * 500)):
        text = as_text(each)
        assert all(len(line) <= WIDTH for line in text.splitlines())
        assert "\x1b" not in text
        assert all(c.isprintable() or c == "\n" for c in text)
    text = as_text(report)
    for title in TITLES:
        assert f"\n{title.upper()}\n" in text


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(7.9201, "7.93"), (7.92, "7.92"), (0.0001, "0.01"), (3.999999, "4.00"), (0.0, "0.00")],
)
def test_epsilon_is_never_rounded_down(changed, epsilon, shown, parsed_page):
    report = changed(epsilon=epsilon, budget=8.0)
    page, text = parsed_page(as_html(report)).text, as_text(report)
    assert f"ε ≤ {shown} δ = 0.00001" in page
    assert f"epsilon = {shown} allows" in page
    assert f"epsilon = {shown}" in " ".join(text.split())
    left = re.search(r"left of the budget +(\d+\.\d\d)", text)
    assert float(left[1]) == pytest.approx(8.0 - float(shown))


def test_no_other_number_is_rounded_down_either(changed, report, parsed_page):
    told = changed(
        epsilon_by_account={"train": 1.2301, "holdout": 0.4501},
        epsilon_replace_one=2.3401,
        epsilon_shared={"2": 3.4501, "3": 4.5601, "5": 5.6701},
        meaning={"odds_factor": 2766.01, "belief_after": {"0.01": 0.965401, "0.5": 0.9999999}},
        audit={"arms": [{**ARM, "lower_bound": 0.4401}]},
    )
    told["accountant"]["cross_check"]["epsilon"] = 6.7801
    for text in (as_text(told), parsed_page(as_html(told)).text):
        for number in ("1.24", "0.46", "2.35", "3.46", "4.57", "5.68", "6.79", "0.45", "2,767"):
            assert number in text, number
        assert "96.55%" in text
        assert "more than 99.99%" in text


def test_a_very_small_delta_is_written_out(changed, parsed_page):
    assert "δ = 0.0000000125 " in parsed_page(as_html(changed(delta=1.25e-8))).text


def test_lost_entries_are_loud_and_their_reasons_are_shown(lost, parsed_page):
    page, text = parsed_page(as_html(lost)), as_text(lost)
    assert ("p", {"class": "loud", "role": "alert"}) in page.tags
    assert "ε is unknown" in page.text
    assert "≤" not in page.text.split("The answer")[0]
    for words in (page.text, text):
        assert "EPSILON IS UNKNOWN. At least 3 entries" in " ".join(words.split())
        assert "2026-05-04 10:11" in words
        assert "<script>alert(1)</script>" in words
        assert "left of the budget" not in words


def test_an_attack_that_finds_more_than_was_claimed_is_loud(changed):
    beaten = changed(audit={"arms": [{**ARM, "lower_bound": 2.5}]})
    broken = changed(audit={"arms": [{**ARM, "kind": "broken", "lower_bound": 2.5}]})
    without = changed(audit={"arms": [{**ARM, "claimed_epsilon": None, "lower_bound": 9.0}]})
    assert "THE CLAIM IS FALSE" in as_text(beaten)
    assert "THE CLAIM IS FALSE" in as_html(beaten)
    assert "THE CLAIM IS FALSE" not in as_text(broken) + as_text(without)
    assert "infinite" in as_text(without)
    assert "No audit came with this report" in as_text(changed(audit=None))


def test_every_entry_of_the_ledger_is_on_the_page(report, parsed_page):
    page = parsed_page(as_html(report))
    folded = page.text.split("All 4 entries")[1].split("How the settings")[0]
    for entry in report["releases"]:
        assert entry["hash"][:12] in folded
    assert report["ledger_head"]["hash"] in page.text
    assert "sampled gaussian: noise multiplier 1.0, sampling rate 0.1, steps 2" in folded


MEASURE = """<!doctype html><title>measuring</title>
<iframe width="{width}" height="700" style="border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const seen = [...page.querySelectorAll("h1, h2")].filter(h => h.checkVisibility());
  page.querySelectorAll("details").forEach(d => d.open = true);
  const boxes = [page.documentElement, ...page.querySelectorAll(".wide")];
  const over = Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth));
  document.body.textContent = "headings " + seen.length + "; over " + over + ";";
}};
</script>"""


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("kind", ["whole", "lost"])
def test_a_browser_shows_the_whole_page_without_an_error(report, lost, browsed, width, kind):
    """No heading is hidden, neither the page nor a table scrolls sideways, the console is empty."""
    page = html.escape(as_html(report if kind == "whole" else lost))
    shown, logged = browsed(MEASURE.format(width=width, page=page))
    assert f"headings {len(TITLES) + 1}; over 0;" in shown
    assert "CONSOLE" not in logged

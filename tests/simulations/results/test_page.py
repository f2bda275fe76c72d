"""The page: nothing from outside, nothing unescaped, each figure there and shown by a browser."""

import base64
import html
import re

import pytest

from credit_simulations.results.page import as_html
from credit_simulations.results.plots import plots

EVIL = '<script>alert(1)</script><img src="http://evil.example/x"> & "quoted" \x1b[2J'
COMMAND = "credit-sim report results.jsonl --out page"
FIGURES = ("gain", "auc", "holder-auc", "ks", "calibration", "rounds", "bytes", "seconds")


@pytest.fixture
def page_of(read):
    def make(*lines):
        found = read(*lines)
        return as_html(found, plots(found.trials), COMMAND)

    return make


@pytest.fixture(scope="module")
def page(module_sweep):
    return as_html(module_sweep, plots(module_sweep.trials), COMMAND)


def test_the_page_is_well_formed_and_its_names_are_unique(page, parsed_page):
    found = parsed_page(page)
    assert found.open == []
    assert [tag for tag, _ in found.tags].count("h1") == 1
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in found.tags if "aria-labelledby" in a} <= set(ids)
    assert {a["href"] for _, a in found.tags if "href" in a} <= {f"#{name}" for name in ids}


def test_each_figure_has_name_caption_words_and_its_picture_inside(page, parsed_page):
    found = parsed_page(page)
    named = [a["id"] for tag, a in found.tags if tag == "figure"]
    assert named == [f"{kind}-pakdd2009" for kind in FIGURES]
    pictures = [a for tag, a in found.tags if tag == "img"]
    assert len(pictures) == page.count("<figcaption>") == len(FIGURES)
    for picture in pictures:
        kind, _, data = picture["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert picture["alt"]


def test_the_page_has_no_script_and_nothing_from_outside(page, parsed_page):
    found = parsed_page(page)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "base", "form"}
    for tag, attrs in found.tags:
        assert not {"srcset", "style", "action"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert tag == "img" or "src" not in attrs
    for outside in ("http:", "https:", "url(", "@import", "//"):
        assert outside not in re.sub(r"base64,[^\"]*", "", page)
    policy = [a["content"] for _, a in found.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_both_answers_are_the_first_thing_that_is_said(page):
    head = page.split("<main>")[0]
    assert "At ε = 8, the gain over training alone is within noise: +0.007" in head
    assert "1 of 3 merchants loses, beyond noise." in head
    assert "ε = 8 costs 0.010 (+0.010 to +0.010); ε = 1 costs 0.030" in head


def test_merchants_who_lose_are_listed_by_name_with_their_noise(page, parsed_page):
    words = parsed_page(page).text
    listed = words.split("Merchants who lose")[1].split("Gain of each merchant")[0]
    assert "2 merchants lose at some ε" in listed
    assert re.search(r"south natural, 3 101 at ε = 8 .0\.030 .* beyond noise", listed)
    assert "north" not in listed
    assert '<td class="right loses">' in page


def test_where_nobody_loses_the_page_says_so(page_of, line):
    def users(auc):
        return {"shop": {"auc": auc, "users": 9}}

    text = page_of(
        line(in_holder=users(0.7)), line(arm="local_only", epsilon=None, in_holder=users(0.6))
    )
    assert "None, at any ε, in the mean over seeds." in text
    assert 'class="answer"' in text


def test_a_data_set_on_which_merchants_lose_is_marked(page_of, line):
    def users(auc):
        return {"shop": {"auc": auc, "users": 9}}

    lines = []
    for seed in range(3):
        lines.append(line(seed=seed, in_holder=users(0.5 + seed / 1000)))
        lines.append(line(seed=seed, arm="local_only", epsilon=None, in_holder=users(0.6)))
    assert 'class="answer loss"' in page_of(*lines)


def test_what_an_arm_is_and_how_epsilon_is_meant_stand_on_the_page(page, parsed_page):
    words = parsed_page(page).text
    assert "one user of one holder" in words
    assert "add or remove" in words
    assert "privacy loss distributions" in words
    assert "at δ = 1e-05" in words
    assert "Spent at most: 0.99 of 1, 7.92 of 8." in words
    assert "an arm of tomorrow An arm that this version of the report does not know." in words
    assert f"<code>{COMMAND}</code>" in page


def test_published_figures_are_beside_ours_with_their_source(page, page_of, line, parsed_page):
    assert "this project, 5-fold cross-validation" in parsed_page(page).text
    assert "Maddock" not in page
    assert "Maddock et al., CCS 2022" in page_of(line(data="gmsc"))


def test_lines_that_do_not_count_are_told(written, line):
    from credit_simulations.results.trials import read_trials

    first = line(arm="central", epsilon=None)
    found = read_trials(written([first, first, line(arm="central", epsilon=None)], "{"))
    text = as_html(found, plots(found.trials), COMMAND)
    assert "The last line is unfinished" in text
    assert "1 line left out: a later one is of the same configuration." in text
    assert "1 trial left out" in text


def test_names_are_text_and_never_markup(page_of, line, parsed_page):
    users = {EVIL: {"auc": 0.5, "users": 9}}
    better = {EVIL: {"auc": 0.6, "users": 9}}
    names = {"data": EVIL, "partition": EVIL}
    text = page_of(
        line(**names, in_holder=users),
        line(**names, arm="local_only", epsilon=None, in_holder=better),
        line(**names, arm=EVIL, epsilon=None),
    )
    found = parsed_page(text)
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert {a["src"].partition(",")[0] for t, a in found.tags if t == "img"} == {
        "data:image/png;base64"
    }
    assert "<script>alert(1)</script>" in found.text
    assert "\x1b" not in text


@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_data_set_has_its_answer_and_its_figures(page_of, line, count, parsed_page):
    found = parsed_page(page_of(*(line(data=f"set{i}", rounds=[]) for i in range(count))))
    answers = [a for _, a in found.tags if a.get("class") == "answer"]
    assert len(answers) == count
    figures = {a["id"] for tag, a in found.tags if tag == "figure"}
    assert {f"auc-set{i}" for i in range(count)} <= figures


MEASURE = """<!doctype html><title>measuring</title>
<iframe width="{width}" height="700" style="border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const shown = [...page.querySelectorAll("figure")].filter(figure => {{
    const picture = figure.querySelector("img");
    return picture.complete && picture.naturalWidth > 0 && picture.checkVisibility();
  }});
  page.querySelectorAll("details").forEach(d => d.open = true);
  const over = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  const names = shown.map(figure => figure.id).join(" ");
  document.body.textContent = "figures " + names + "; over " + over + ";";
}};
</script>"""


@pytest.fixture
def measured(browsed):
    """Figures whose pictures have a size, and pixels beyond the width; and what was logged."""
    return lambda page, width: browsed(MEASURE.format(width=width, page=html.escape(page)))


@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_each_figure_without_an_error(page, measured, width):
    """The page does not scroll sideways, the console is empty, each named picture has a size."""
    shown, logged = measured(page, width)
    names = " ".join(f"{kind}-pakdd2009" for kind in FIGURES)
    assert f"figures {names}; over 0;" in shown
    assert "CONSOLE" not in logged


def test_a_browser_would_miss_a_damaged_picture_and_log_what_comes_from_outside(page, measured):
    broken = page.replace("base64,iVBOR", "base64,AAAAA", 1)
    broken = broken.replace("</main>", '<img alt="" src="file:///outside.png"></main>')
    shown, logged = measured(broken, 1100)
    assert "figures auc-pakdd2009 " in shown
    assert "Content Security Policy" in logged

"""The model report: as a page, in a terminal and as Markdown; nothing from outside, no markup."""

import dataclasses
import html
import re
from datetime import date

import pytest

from credit_client.page.text import as_markdown, as_text
from credit_client.terminal import WIDTH
from credit_client.validation.judge import Asked, judge
from credit_client.validation.page import as_html
from credit_client.validation.parts import parts, title_of
from credit_common.decision import Decision

EVIL = '<script>alert(1)</script><img src="http://evil.example/x"> | "quoted" $x$ \x1b[2J'
TITLES = (
    "The answer",
    "What was judged on whom",
    "How well users are ordered",
    "Cut-offs",
    "Calibration",
    "Groups of people",
    "Fields, one by one",
    "Points table",
    "Champion and challenger",
    "Out of time",
    "How to read this",
)
PICTURES = (
    "ROC curve",
    "KS curve",
    "Scores by outcome",
    "Lift and gain",
    "Cut-off curve",
    "Reliability",
    "Share approved by group (approve below 0.15)",
    "Information value",
    "What fields can give and take",
)


@pytest.fixture(scope="module")
def whole(release_of, trial):
    """A study with everything that can be asked for."""
    challenger = release_of(seed=7, model={"train": ["wide"]})
    asked = Asked(device="cpu", challenger=challenger, since=date(2025, 7, 1))
    return judge(trial.release, trial.shard, asked)


@pytest.fixture(scope="module")
def page(whole):
    return as_html(whole)


@pytest.fixture(scope="module")
def evil(whole):
    """The same with names that are markup wherever a name can stand."""
    field = dataclasses.replace(whole.evidence[0], name=EVIL)
    cell = dataclasses.replace(field.cells[0], name=EVIL)
    points = dataclasses.replace(whole.points.fields[0], name=EVIL)
    groups = tuple(dataclasses.replace(g, name=EVIL) for g in whole.fairness[0].groups)
    at = whole.fairness[0].at[0]
    rates = tuple(dataclasses.replace(g, name=EVIL) for g in at.groups)
    fairness = dataclasses.replace(
        whole.fairness[0],
        field=EVIL,
        groups=groups,
        at=(dataclasses.replace(at, groups=rates, mark=EVIL),),
    )
    return dataclasses.replace(
        whole,
        judged=dataclasses.replace(whole.judged, federation=EVIL, file=EVIL),
        evidence=(dataclasses.replace(field, cells=(cell, *field.cells[1:])), *whole.evidence[1:]),
        points=dataclasses.replace(whole.points, fields=(points, *whole.points.fields[1:])),
        fairness=(fairness,),
    )


def test_the_page_is_well_formed_and_has_all_its_parts_and_pictures(page, parsed_page):
    found = parsed_page(page)
    assert found.open == []
    assert [tag for tag, _ in found.tags].count("h1") == 1
    for title in (*TITLES, *PICTURES):
        assert title in found.text, title
    pictures = [attrs for tag, attrs in found.tags if tag == "img"]
    assert len(pictures) == len(PICTURES)
    for picture in pictures:
        assert picture["src"].startswith("data:image/png;base64,iVBOR")
        assert len(picture["alt"]) > 20
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) == len(TITLES)


def test_the_page_has_no_script_and_nothing_from_outside(page, parsed_page):
    found = parsed_page(page)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "base", "form"}
    for _, attrs in found.tags:
        assert not {"href", "srcset", "style", "action"} & set(attrs)
        assert attrs.get("src", "data:").startswith("data:")
        assert not [name for name in attrs if name.startswith("on")]
    for outside in ("http:", "https:", "url(", "@import"):
        assert outside not in page
    (policy,) = [a["content"] for _, a in found.tags if a.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_text_and_never_markup(page, evil, parsed_page):
    usual, odd = parsed_page(page), parsed_page(as_html(evil))
    assert {tag for tag, _ in odd.tags} <= {tag for tag, _ in usual.tags} | {"code"}
    assert "<script>alert(1)</script>" in odd.text
    assert all(a["src"].startswith("data:") for tag, a in odd.tags if tag == "img")
    told = as_markdown(title_of(evil), parts(evil))
    assert "<script" not in told
    assert "\x1b" not in told


def test_text_fits_a_terminal_and_cannot_steer_it(whole, evil):
    for each in (whole, evil):
        told = as_text(title_of(each), parts(each), "elsewhere")
        assert all(len(line) <= WIDTH for line in told.splitlines())
        assert all(c.isprintable() or c == "\n" for c in told)
    told = as_text(title_of(whole), parts(whole), "elsewhere")
    for title in TITLES:
        assert f"\n{title.upper()}\n" in told


def table_of(markdown, first):
    """Rows of the Markdown table whose first head it is."""
    lines = markdown.split(f"| {first} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_markdown_has_every_number_of_the_tables(whole):
    told = as_markdown(title_of(whole), parts(whole))
    bands = table_of(told, "band")
    assert [row[1:3] for row in bands] == [[str(b.users), str(b.bads)] for b in whole.bands]
    assert [row[-1] for row in bands] == [f"{b.ks:.4f}" for b in whole.bands]
    cuts = table_of(told, "PD below")
    assert [row[2] for row in cuts] == [str(c.approved) for c in whole.cut_offs]
    cells = sum(len(field.cells) for field in whole.evidence)
    assert told.count("elsewhere") == 0
    assert len(re.findall(r"(?m)^\| .* \| .* \| \d+ \| \d+ \| .* \| .* \| .* \|$", told)) >= cells
    swaps = table_of(told, "users | number")
    assert [row[1] for row in swaps] == [str(o.users) for o in whole.challenge.swaps]


def test_what_was_not_asked_for_is_not_shown(told, parsed_page):
    found = parsed_page(as_html(told))
    assert "Champion and challenger" not in found.text
    assert "Out of time" not in found.text


def test_what_decides_is_said(trial, calibration_of, told):
    def answer(study):
        return " ".join(as_text("", parts(study), "").split())

    assert "the hold-out users of the contract's split" in answer(told)
    assert "cut-offs the contract's" in answer(told)
    assert "PDs for decisions as released" in answer(told)
    assert "Not judged: a calibration by isotonic:" in answer(told)
    path = calibration_of(trial.release, "platt")
    own = Decision(approve_below=0.1, decline_from=0.2)
    asked = Asked(device="cpu", users="all", calibration=path, decision=own)
    other = answer(judge(trial.release, trial.shard, asked))
    assert "figures on them flatter" in other
    assert "cut-offs the holder's own" in other
    assert "by platt calibration, each user's PD from a fit on the four fifths" in other
    assert "platt (in use)" in other
    assert "PDs by platt calibration say" in other
    assert "The holder's calibration, which users' points are told by, comes after it" in other
    assert "calibration say" not in answer(told)


def test_groups_that_are_not_judged_are_said_and_those_below_four_fifths_are_loud(whole):
    told = " ".join(as_text("", parts(whole), "").split())
    assert "Counted, not judged, having fewer than 30 users: (other)." in told
    at = dataclasses.replace(whole.fairness[0].at[0], four_fifths=False)
    low = dataclasses.replace(whole, fairness=(dataclasses.replace(whole.fairness[0], at=(at,)),))
    said = " ".join(as_text("", parts(low), "").split())
    assert "BELOW FOUR FIFTHS" in said
    assert "ratio is under .8 by sex (approve below 0.15)" in said.split("WHAT WAS JUDGED")[0]


MEASURE = """<!doctype html><title>measuring</title>
<iframe width="{width}" height="700" style="border:0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const shown = [...page.querySelectorAll("img")].filter(
    picture => picture.complete && picture.naturalWidth > 0 && picture.checkVisibility());
  const heads = [...page.querySelectorAll("h1, h2")].filter(h => h.checkVisibility());
  const over = box => box.scrollWidth - box.clientWidth;
  const boxes = [...page.querySelectorAll(".wide")].map(over);
  page.querySelectorAll("details").forEach(d => d.open = true);
  document.body.textContent = "pictures " + shown.length + "; headings " + heads.length
    + "; over " + over(page.documentElement) + "; boxes " + Math.max(...boxes) + ";";
}};
</script>"""


@pytest.mark.parametrize("width", [360, 1100])
def test_a_browser_shows_the_whole_page_without_an_error(page, browsed, width):
    """Pictures have a size, the page does not scroll sideways, the console is empty.

    Tables of numbers scroll within themselves on a phone, and not on a laptop.
    """
    shown, logged = browsed(MEASURE.format(width=width, page=html.escape(page)))
    assert f"pictures {len(PICTURES)}; headings {len(TITLES) + 1}; over 0;" in shown
    assert width == 360 or "boxes 0;" in shown
    assert "CONSOLE" not in logged


def test_a_browser_would_miss_a_damaged_picture_and_log_what_comes_from_outside(page, browsed):
    broken = page.replace("base64,iVBOR", "base64,AAAAA", 1)
    broken = broken.replace("</main>", '<img alt="" src="file:///outside.png"></main>')
    shown, logged = browsed(MEASURE.format(width=1100, page=html.escape(broken)))
    assert f"pictures {len(PICTURES) - 1};" in shown
    assert "Content Security Policy" in logged

"""docs/performance.md has the tables of every benchmark, and what it links to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 10
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize("name", ["training", "wire", "rounds", "scoring", "start"])
def test_every_table_stands_over_the_command_that_made_it(name):
    part = PAGE.split(f"<!-- {name} -->")[1].split("\n## ")[0]
    assert re.search(r"^\|.*\|$\n^\|[-:|]+\|$", part, re.MULTILINE)
    assert re.search(rf"^`credit-sim bench {name}.*`$", part, re.MULTILINE)

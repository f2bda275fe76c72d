"""docs/privacy.md names a test for each row, and the tests that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")


def test_every_row_has_its_line_and_its_file():
    lines = re.findall(r"^\| (\d+) \|.*\[row (\d+)\]\((\S+)\)", PAGE, re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == list(range(1, 24))
    for number, named, path in lines:
        assert number == named
        file = (ROOT / "docs" / path).resolve()
        assert re.search(rf"row_(\d\d_)*{int(number):02d}_", file.name)
        text = file.read_text(encoding="utf-8")
        assert f"def test_row_{int(number):02d}_" in text
        assert f"def test_row_{int(number):02d}_catches_" in text


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 25
    for link in links:
        assert (ROOT / "docs" / link).exists(), link

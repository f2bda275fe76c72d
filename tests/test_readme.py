"""The README's annotated file map is what git tracks."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed() -> dict[str, str]:
    """Path -> what the map says of it."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"<!-- file map.*?-->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no file map"
    paths: dict[str, str] = {}
    folders: list[str] = []
    for line in block.group(1).splitlines():
        name, _, comment = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        else:
            paths["/".join([*folders, name])] = comment.strip()
    return paths


def tracked() -> set[str]:
    shown = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {path for path in shown if not path.endswith(("__init__.py", "py.typed"))}


def test_the_file_map_names_every_tracked_file_and_no_other() -> None:
    assert set(listed()) == tracked()


def test_every_file_of_the_map_is_explained() -> None:
    assert [path for path, comment in listed().items() if not comment] == []

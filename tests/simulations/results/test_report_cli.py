"""`credit-sim report` as it is typed: one format on stdout, words on stderr, files in --out."""

import csv
import io
import json
import sys

import pytest

from credit_simulations.cli import main
from credit_simulations.results.rows import COLUMNS


@pytest.fixture
def report(capsys):
    """Runs it; returns exit code, stdout and stderr."""

    def run(*typed):
        code = main(["report", *map(str, typed)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_json_is_a_list_of_rows_with_exactly_the_columns(report, written, sweep):
    code, out, err = report(written(sweep()), "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert {tuple(row) for row in rows} == {COLUMNS}
    assert len(rows) == 10
    assert "30 trials over 3 seeds" in err


def test_each_format_is_alone_on_stdout(report, written, sweep):
    path = written(sweep())
    assert len(list(csv.DictReader(io.StringIO(report(path, "--format", "csv")[1])))) == 10
    told = report(path, "--format", "markdown")[1]
    assert told.startswith("- pakdd2009, 3 holders (natural). At ε = 8, the gain")
    assert "\n\n**Means over seeds**\n" in told
    assert "\\toprule" in report(path, "--format", "latex")[1]
    table = report(path)[1]
    assert "AUC against ε" in table
    assert "pakdd2009, 3 holders (natural). At ε = 8, the gain" in table


def test_out_gets_the_page_and_each_figure(report, written, line, tmp_path):
    folder = tmp_path / "new folder" / "page"
    path = written([line()], '{"half')
    code, _, err = report(path, "--out", folder, "--format", "json")
    assert code == 0
    assert "The last line is unfinished, as after a crash, and was skipped." in err
    names = {file.name for file in folder.iterdir()}
    assert {"index.html", "auc-pakdd2009.png", "seconds-pakdd2009.png"} <= names
    page = (folder / "index.html").read_text("utf-8")
    assert f"credit-sim report {path} --out &#x27;{folder}&#x27;" in page


def test_what_is_wrong_is_one_line_that_names_file_and_line(report, written, line, tmp_path):
    missing = tmp_path / "missing.jsonl"
    assert report(missing) == (1, "", f"credit-sim: {missing}: No such file or directory\n")
    code, out, err = report(written([line(), line(auc=7)]))
    assert (code, out) == (1, "")
    assert err.endswith("results.jsonl, line 2: auc must be in [0, 1]\n")
    assert err.count("\n") == 1
    assert "holds no finished trial" in report(written([]))[2]


def test_a_folder_that_cannot_be_written_is_told(report, written, line, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = report(written([line()]), "--out", tmp_path / "file")
    assert code == 1
    assert "credit-sim: " in err
    assert "Traceback" not in err


def test_without_matplotlib_the_extra_is_named_and_tables_are_printed(
    report, written, line, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = written([line()])
    code, out, err = report(path, "--out", tmp_path / "page")
    assert (code, out) == (1, "")
    assert "pip install '.[report]'" in err
    assert not (tmp_path / "page").exists()
    assert report(path, "--format", "json")[0] == 0

"""Spoilt records: means over seeds, and nothing where nobody asked."""

from credit_simulations.results.page import as_html
from credit_simulations.results.plots import plots
from credit_simulations.results.spoilt import spoilt_grid
from credit_simulations.results.tables import as_latex, as_markdown


def test_ways_are_averaged_over_seeds(read, line):
    found = read(
        line(seed=0, perturbed={"clean": 0.7, "typos": 0.66, "sideways": 0.5}),
        line(seed=1, perturbed={"clean": 0.72, "typos": None}),
        line(arm="gbm", epsilon=None, perturbed={}),
    )
    grid = spoilt_grid(found.trials)
    assert grid.heads[-3:] == ("as they are", "typing errors", "sideways")
    (only,) = grid.cells
    assert only[-3:] == ("0.710", "0.660", "0.500")
    assert grid.title in as_html(found, plots(found.trials), "credit-sim report")
    for write in (as_markdown, as_latex):
        assert grid.title in write(found.trials)


def test_without_any_there_is_no_table(read, line):
    found = read(line())
    assert spoilt_grid(found.trials).cells == []
    page = as_html(found, plots(found.trials), "credit-sim report")
    title = spoilt_grid(found.trials).title
    assert title not in page
    assert title not in as_markdown(found.trials)

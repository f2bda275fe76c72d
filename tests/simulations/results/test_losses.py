"""What ε costs: against the same arm without DP, with a linear model's losses where it has any."""

from credit_simulations.results.losses import loss_grid
from credit_simulations.results.page import as_html
from credit_simulations.results.plots import plots
from credit_simulations.results.tables import as_markdown


def test_losses_are_to_the_same_training_without_dp(read, line):
    found = read(
        line(epsilon=8, auc=0.65),
        line(epsilon=1, auc=0.62),
        line(epsilon=None, auc=0.66),
        line(arm="central_dp", epsilon=8, auc=0.67),
        line(arm="central", epsilon=None, auc=0.671),
        line(arm="wide_only", epsilon=8, auc=0.64),  # nothing to take it from
        line(arm="gbm", epsilon=None, auc=0.68),
    )
    grid = loss_grid(found.trials)
    assert grid.heads[-2:] == ("ε = 1", "ε = 8")
    own = {cells[3]: cells[4:] for cells in grid.cells}
    assert own["federated"] == ("+0.040", "+0.010")
    assert own["central, DP"] == ("", "+0.001")
    assert own["linear model: wide, noise at each holder"] == ("+0.024", "+0.003")
    assert list(own) == [*list(own)[:2], *(name for name in own if name.startswith("linear"))]
    assert grid.title in as_markdown(found.trials)
    assert grid.title in as_html(found, plots(found.trials), "credit-sim report")


def test_a_set_or_partition_without_a_linear_model_has_none_beside(read, line):
    found = read(
        line(data="other", auc=0.65),
        line(data="other", epsilon=None, auc=0.66),
        line(partition="iid", auc=0.65),
        line(partition="iid", epsilon=None, auc=0.66),
    )
    grid = loss_grid(found.trials)
    assert [cells[3] for cells in grid.cells] == ["federated", "federated"]


def test_without_a_pair_there_is_no_table(read, line):
    found = read(line())
    assert loss_grid(found.trials).cells == []
    assert "linear model" not in as_markdown(found.trials)


def test_losses_are_over_the_seeds_of_both(read, line):
    found = read(
        line(seed=0, epsilon=None, auc=0.66),
        line(seed=1, epsilon=None, auc=0.76),
        line(seed=1, epsilon=8, auc=0.74),
    )
    assert loss_grid(found.trials).cells[0][-1] == "+0.020"

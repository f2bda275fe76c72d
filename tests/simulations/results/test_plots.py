"""Every figure that the trials allow is drawn, with something on it, whatever names are in it."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from credit_simulations.results.claims import Spread
from credit_simulations.results.curves import by_round, merged
from credit_simulations.results.drawing import framed, of_epsilon, short
from credit_simulations.results.plots import plots, write_plots
from credit_simulations.results.trials import Bin

KINDS = ("gain", "auc", "holder-auc", "ks", "calibration", "rounds", "bytes", "seconds")
EVIL = '$\\frac{x} <b>"&\n\u6f22\u5b57 \x1b[2J _'


def colours(png):
    """How many, and how large a share is not the background."""
    pixels = (imread(io.BytesIO(png), format="png") * 255).astype(np.uint8)
    packed = np.ascontiguousarray(pixels).view(np.uint32).ravel()
    return len(np.unique(packed)), float((packed != packed[0]).mean())


@pytest.fixture(scope="module")
def drawn(module_sweep):
    return plots(module_sweep.trials)


def test_each_named_figure_is_there_once_and_is_not_blank(drawn):
    (data,) = drawn
    assert [plot.name for plot in drawn[data]] == [f"{kind}-{data}" for kind in KINDS]
    for plot in drawn[data]:
        count, share = colours(plot.png)
        assert count > 10, plot.name
        assert share > 0.01, plot.name


def test_a_blank_figure_would_be_caught():
    from credit_client.page.drawing import drawn as draw

    count, share = colours(draw(lambda figure: None, 4, 3))
    assert count == 1
    assert share == 0


def test_each_figure_is_told_in_words_too(drawn):
    plots_of = {plot.name: plot for plot in drawn["pakdd2009"]}
    for plot in plots_of.values():
        assert len(plot.alt) > 30
        assert plot.title
        assert plot.caption
    assert "local only: 0.601 at ∞" in plots_of["auc-pakdd2009"].alt
    assert "an arm of tomorrow" in plots_of["auc-pakdd2009"].alt
    assert "at ε = 8: 1 of 3 lose" in plots_of["gain-pakdd2009"].alt
    assert "14.2 KiB" in plots_of["bytes-pakdd2009"].alt


def test_losers_are_red_and_a_figure_without_any_has_no_red(read, sweep):
    def reddish(lines):
        gain = plots(read(*lines).trials)["pakdd2009"][0]
        pixels = imread(io.BytesIO(gain.png), format="png")[..., :3]
        return int((np.abs(pixels - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.02).sum())

    lines = sweep()
    winning = [
        {**each, "in_holder": {"north": each["in_holder"]["north"]}}
        for each in lines
        if each["epsilon"] != 1.0
    ]
    assert reddish(lines) > 100
    assert reddish(winning) == 0


def test_bytes_png_hold_no_reference(drawn):
    for plot in drawn["pakdd2009"]:
        assert b"http" not in plot.png


def test_names_of_any_kind_are_drawn_as_they_are(read, line):
    holders = {EVIL: {"auc": 0.7, "users": 5}, "_hidden": {"auc": None, "users": 0}}
    lines = [
        line(data=EVIL, partition=f"natural {EVIL}", arm=arm, epsilon=epsilon, in_holder=holders)
        for arm, epsilon in (("federated", 1), ("local_only", None), (EVIL, None), ("_x", 3))
    ]
    (found,) = plots(read(*lines).trials).values()
    assert {plot.name.split("-")[0] for plot in found} >= {"gain", "auc", "ks", "seconds"}


def test_two_data_sets_whose_names_differ_by_signs_have_files_of_their_own(read, line, tmp_path):
    found = plots(read(line(data="a b"), line(data="a/b")).trials)
    names = [plot.name for several in found.values() for plot in several]
    assert len(set(names)) == len(names)
    written = write_plots(found, tmp_path / "new" / "folder")
    assert sorted(path.stem for path in written) == sorted(names)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_what_there_is_no_trial_for_is_not_drawn(read, line):
    (found,) = plots(read(line(arm="central", epsilon=None, bytes_up=0)).trials).values()
    assert [plot.name.rsplit("-", 1)[0] for plot in found] == ["auc", "holder-auc", "ks", "seconds"]


def test_a_federation_without_dp_is_a_point_and_not_a_level(read, line):
    from credit_simulations.results.drawing import is_level

    assert is_level("local_only", [None])
    assert is_level("an arm of tomorrow", [None])
    assert not is_level("federated", [None])
    assert not is_level("central_dp", [1.0])


def test_bins_are_merged_by_their_users():
    bins = [Bin(predicted=p, observed=p / 2, users=u) for p, u in ((0.3, 10), (0.1, 30), (0.2, 0))]
    (one,) = merged(bins, most=1)
    assert (one.predicted, one.observed, one.users) == pytest.approx((0.15, 0.075, 40))
    assert [b.users for b in merged(bins)] == [30, 10]
    even = [Bin(predicted=i / 100, observed=0.1, users=7) for i in range(100)]
    assert [b.users for b in merged(even, most=10)] == [70] * 10
    assert merged([]) == []


def test_rounds_are_averaged_where_all_seeds_have_them():
    assert by_round([[(5, 0.5), (10, 0.6)], [(5, 0.7)]]) == [(5, pytest.approx(0.6))]
    assert by_round([[(5, 0.5)], [(6, 0.7)]]) == [(5, 0.5), (6, 0.7)]


def test_wide_intervals_leave_the_frame_and_means_never_do():
    wide = Spread(mean=0.65, low=0.1, high=1.2, seeds=2)
    low, high = framed([wide, Spread(mean=0.66, low=None, high=None, seeds=1)])
    assert 0.6 < low < 0.65
    assert 0.66 < high < 0.7


def test_no_two_epsilons_share_colour_and_mark():
    every = [0.1, 0.5, 1.0, 3.0, 8.0, None]
    assert len({of_epsilon(epsilon, every) for epsilon in every}) == len(every)


def test_long_names_stay_apart_as_labels():
    labels = {short(f"a long name of merchant number {number}") for number in range(100)}
    assert len(labels) == 100
    assert {len(each) for each in labels} == {22}
    assert short("x\ny") == "x y"

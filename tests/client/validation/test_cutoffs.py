"""Cut-offs: counted one by one, those in force among them, and losses by hand."""

import numpy as np
import pytest

from credit_client.validation.cutoffs import Stakes, banded, cut_off_table, decided, marked
from credit_common.decision import Decision
from credit_common.errors import ContractError

DECISION = Decision(
    approve_below=0.15, decline_from=0.4, bands=(("A", 0.05), ("B", 0.2), ("C", 1.0))
)
MARKS = (("approve below", 0.15), ("decline from", 0.4))


def test_each_cut_off_is_what_counting_says(drawn):
    _, pds, labels = drawn(400)
    cuts = cut_off_table(pds, labels, MARKS, Stakes(lgd=0.6, exposure=200))
    assert [c.pd for c in cuts] == sorted(c.pd for c in cuts)
    assert [(c.mark, c.pd) for c in cuts if c.mark] == list(MARKS)
    for cut in cuts:
        below = [i for i in range(400) if pds[i] < cut.pd]
        above = [i for i in range(400) if pds[i] >= cut.pd]
        assert cut.approved == len(below)
        assert cut.approval_rate == len(below) / 400
        assert cut.bads == sum(labels[i] for i in below)
        assert cut.bad_rate_approved == pytest.approx(np.mean(labels[below]))
        if above:
            assert cut.bad_rate_declined == pytest.approx(np.mean(labels[above]))
        assert cut.expected_loss == pytest.approx(np.mean([pds[i] * 0.6 * 200 for i in below]))
        assert cut.observed_loss == pytest.approx(np.mean([labels[i] * 120 for i in below]))
    assert cuts[-1].approved == 400
    assert cuts[-1].bad_rate_declined is None
    rates = [c.approval_rate for c in cuts if not c.mark]
    assert rates == pytest.approx(np.arange(1, 21) / 20)


def test_a_cut_off_below_everybody_approves_nobody_and_says_no_rate(drawn):
    _, pds, labels = drawn(100)
    cut = cut_off_table(pds, labels, (("approve below", 1e-9),), Stakes())[0]
    assert (cut.approved, cut.bad_rate_approved, cut.expected_loss) == (0, None, None)
    assert cut.bad_rate_declined == pytest.approx(labels.mean())


def test_ties_are_never_split(drawn):
    _, pds, labels = drawn(200, ties=True)
    sizes = {int((pds < pd).sum()) for pd in np.unique(pds)} | {200}
    assert {c.approved for c in cut_off_table(pds, labels, (), Stakes())} <= sizes


def test_decisions_and_bands_have_every_user_once(drawn):
    _, pds, labels = drawn(300)
    pds[:3] = [0.15, 0.4, 1.0]  # a cut-off belongs to what comes after it; 1 to the last band
    approve, refer, decline = decided(pds, labels, DECISION)
    assert approve.users == (pds < 0.15).sum()
    assert decline.users == (pds >= 0.4).sum()
    assert approve.users + refer.users + decline.users == 300
    assert approve.bads + refer.bads + decline.bads == labels.sum()
    bands = banded(pds, labels, DECISION)
    assert [b.name for b in bands] == ["A", "B", "C"]
    assert [b.users for b in bands] == [
        (pds < 0.05).sum(),
        ((pds >= 0.05) & (pds < 0.2)).sum(),
        (pds >= 0.2).sum(),
    ]
    assert decided(pds, labels, Decision()) == banded(pds, labels, Decision()) == ()


def test_without_cut_offs_the_base_rate_stands_for_one(contract):
    assert marked(contract, Decision()) == (("base rate", 0.2),)
    assert marked(contract, DECISION) == MARKS
    one = Decision(approve_below=0.3, decline_from=0.3)
    assert marked(contract, one) == (("approve below", 0.3),)


@pytest.mark.parametrize(
    ("stakes", "said"),
    [
        ({"lgd": 1.5}, "lgd = 1.5: must be between 0 and 1"),
        ({"lgd": float("nan")}, "lgd = nan"),
        ({"exposure": 0.0}, "exposure = 0: must be positive"),
        ({"exposure": float("inf")}, "exposure = inf"),
    ],
)
def test_stakes_out_of_bounds_are_refused_by_name(stakes, said):
    with pytest.raises(ContractError, match=said):
        Stakes(**stakes)

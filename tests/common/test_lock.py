import pytest

from credit_common.errors import CreditError, LedgerBusyError
from credit_common.lock import hold

BUSY = LedgerBusyError("somebody else is at work")


def test_a_file_is_held_by_one_until_it_is_closed(tmp_path):
    path = tmp_path / "own.lock"
    with hold(path, BUSY):
        for _ in range(2):  # the second in vain does not let go of the first one's lock
            with pytest.raises(LedgerBusyError, match="somebody else"):
                hold(path, BUSY)
        hold(tmp_path / "other.lock", BUSY).close()
    hold(path, BUSY).close()
    assert path.exists()


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CreditError, match=r"cannot write .*nowhere/own\.lock: No such file"):
        hold(tmp_path / "nowhere" / "own.lock", BUSY)

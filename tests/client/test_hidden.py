import numpy as np
import pytest
import torch

from credit_client.cache import TAG, Cache
from credit_client.training.hidden import Frozen, Hidden, Store
from credit_common.errors import CacheError

WIDTH = 4
LENGTHS = np.array([8, 16, 8, 8, 24, 16, 8, 24, 16, 8])
FIXED = 4
"""Rows of a physical batch here."""


def texts(lengths=LENGTHS):
    """Text i is made of the token i + 1 alone, one short of its padded length."""
    return [np.full(length - 1, i + 1, np.int64) for i, length in enumerate(lengths)]


class Layers:
    """Frozen layers whose output says which text it is of; counts what they are asked for."""

    def __init__(self, cls_only=False):
        self.cls_only, self.asked = cls_only, []

    def __call__(self, tokens, length):
        for start in range(0, len(tokens), FIXED):
            own = tokens[start : start + FIXED]
            self.asked += [int(text[0]) - 1 for text in own]
            out = torch.zeros(len(own), 1 if self.cls_only else length, WIDTH)
            for row, text in enumerate(own):
                out[row] = text[0]
                out[row, 0, 0] = length
            yield out.half()


def made(store, run=None, lengths=LENGTHS, cls_only=False):
    run = run or Layers(cls_only)
    return Hidden(texts(lengths), lengths, width=WIDTH, cls_only=cls_only, run=run, store=store)


def place_of(i, lengths=LENGTHS):
    return int((lengths[:i] == lengths[i]).sum())


def check_all(hidden, lengths=LENGTHS):
    for i, length in enumerate(lengths.tolist()):
        (row,) = hidden.rows(length, np.array([place_of(i, lengths)]))
        assert row.dtype == torch.half
        assert row[0, 0] == length
        assert (row.flatten()[1:] == i + 1).all()


@pytest.fixture(params=["memory", "file"])
def cache(request, tmp_path):
    def make(rows=None, kind=request.param):
        """Room for some rows, by their number from the first on."""
        limit = rows
        if rows is not None:
            extra = TAG if kind == "file" else 0
            limit = int((LENGTHS[:rows] * WIDTH * 2 + extra).sum())
        return Cache(kind=kind, folder=tmp_path, limit=limit)

    return make


@pytest.mark.parametrize("kept", [*range(len(LENGTHS) + 1), None])
def test_the_first_rows_are_kept_and_the_others_run_anew(cache, kept):
    with Store(cache(kept)) as store:
        run = Layers()
        hidden = made(store, run)
        first = len(LENGTHS) if kept is None else kept
        assert sorted(run.asked) == list(range(first))
        assert (store.kept, store.late) == (first, len(LENGTHS) - first)
        run.asked.clear()
        check_all(hidden)
        assert run.asked == list(range(first, len(LENGTHS)))


def test_a_byte_less_than_a_row_needs_keeps_it_out(cache):
    whole = cache(3)
    for limit, rows in ((whole.limit, 3), (whole.limit - 1, 2), (whole.limit + 1, 3)):
        less = Cache(kind=whole.kind, folder=whole.folder, limit=limit)
        with Store(less) as store:
            made(store)
            assert store.kept == rows
            assert store.bytes <= limit


def test_a_row_that_does_not_fit_ends_what_is_kept(cache):
    """Which rows are kept follows their order: a later, shorter one does not jump in."""
    lengths = np.array([8, 64, 8])
    room = cache(None).row_bytes(8 * WIDTH) * 2
    with Store(Cache(kind=cache(None).kind, folder=cache(None).folder, limit=room)) as store:
        run = Layers()
        hidden = made(store, run, lengths)
        assert run.asked == [0]
        check_all(hidden, lengths)


def test_one_store_has_one_limit_for_all_that_share_it(cache):
    both = cache(None).row_bytes(8 * WIDTH) * 6
    lengths = np.full(4, 8)
    with Store(Cache(kind=cache(None).kind, folder=cache(None).folder, limit=both)) as store:
        first, second = made(store, lengths=lengths), made(store, lengths=lengths)
        assert (store.kept, store.late, store.bytes) == (6, 2, both)
        check_all(first, lengths)
        check_all(second, lengths)
        assert "6 users" in store.summary()
        assert "2 users run anew" in store.summary()


@pytest.mark.parametrize("kept", [0, 1, 4, None])
def test_places_may_repeat_and_come_in_any_order(cache, kept):
    with Store(cache(kept)) as store:
        run = Layers()
        hidden = made(store, run)
        run.asked.clear()
        of_eight = np.flatnonzero(LENGTHS == 8)
        places = np.array([4, 0, 0, 3, 4, 1, 2, 4])
        rows = hidden.rows(8, places)
        assert [int(row[1, 0]) - 1 for row in rows] == of_eight[places].tolist()
        assert len(run.asked) == len(set(run.asked))  # each at most once for a batch


def test_masks_say_which_tokens_are_padding(cache):
    hidden = made(Store(cache(2)))
    assert hidden.masks(16, np.array([1, 0])).tolist() == [[True] * 15 + [False]] * 2


def test_rows_of_cls_alone_take_a_tokens_room(cache):
    with Store(Cache(kind="memory", limit=5 * WIDTH * 2)) as store:
        hidden = made(store, cls_only=True)
        assert (store.kept, store.late) == (5, 5)
        assert hidden.rows(24, np.array([0, 1])).shape == (2, 1, WIDTH)


def test_known_output_of_the_same_texts_stays_where_it_is(cache):
    rows = {n: torch.full(((n == LENGTHS).sum(), 1, WIDTH), n / 8) for n in (8, 16, 24)}
    with Store(cache(3)) as store:
        hidden = made(store)
        counts = np.array([len(text) for text in texts()])
        other = Hidden.of(Frozen(counts=counts, rows=rows), LENGTHS)
        assert other.bytes == sum(2 * own.numel() for own in rows.values())
        assert other.rows(24, np.array([1])).tolist() == [[[3.0] * WIDTH]]
        assert torch.equal(other.masks(24, np.array([1])), hidden.masks(24, np.array([1])))
        check_all(hidden)


def test_a_limit_of_nothing_makes_no_file(cache, tmp_path):
    with Store(cache(0)) as store:
        check_all(made(store))
        assert list(tmp_path.iterdir()) == []


def test_the_file_is_made_for_a_file_alone_and_deleted_with_the_store(cache, tmp_path):
    with Store(cache()) as store:
        hidden = made(store)
        assert len(list(tmp_path.iterdir())) == (cache().kind == "file")
        if cache().kind == "file":
            (file,) = tmp_path.iterdir()
            assert file.stat().st_size == store.bytes
            assert str(file) in store.summary()
            assert (Layers()(texts()[:1], 8).__next__().numpy().tobytes()) not in file.read_bytes()
    assert list(tmp_path.iterdir()) == []
    if cache().kind == "file":
        with pytest.raises(CacheError, match="closed"):
            hidden.rows(8, np.array([0]))


def test_a_damaged_file_is_remembered(tmp_path):
    with Store(Cache(kind="file", folder=tmp_path)) as store:
        hidden = made(store)
        store.check()
        (file,) = tmp_path.iterdir()
        file.write_bytes(b"")
        with pytest.raises(CacheError, match="cut short"):
            hidden.rows(8, np.array([0]))
        with pytest.raises(CacheError, match="cut short"):
            store.check()
        assert list(tmp_path.iterdir()) == []


def test_all_room_is_taken_before_the_frozen_layers_run(tmp_path):
    run = Layers()
    lengths = np.array([8, 1 << 40])  # no disk has room for the second
    tokens = [np.ones(3, np.int64)] * 2
    store = Store(Cache(kind="file", folder=tmp_path))
    with pytest.raises(CacheError, match="--cache-limit"):
        Hidden(tokens, lengths, width=1 << 20, cls_only=False, run=run, store=store)
    assert run.asked == []
    assert list(tmp_path.iterdir()) == []

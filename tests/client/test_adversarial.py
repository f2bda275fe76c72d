import dataclasses

import numpy as np
import pytest
import torch

from credit_client.training import loop
from credit_client.training.adversarial import fill_adversarial, row_moves
from credit_client.training.examples import Examples
from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses, train
from credit_client.training.randomness import SeededRandom
from credit_common.privacy import mechanism_plan

RADIUS = 0.3


@pytest.fixture(scope="module", params=[("lora", "head", "wide"), ("head",)])
def shop(request, variant, model_for, records, shaken):
    """A model away from its start, and the fullest physical batch that has filling."""
    contract = variant(model={"train": request.param, "layers": 2})
    model = model_for(contract)
    model.load_adapter(shaken(model, scale=0.1))
    examples = Examples(model, contract, records(40))
    partial = [b for b in examples.batches(np.arange(40)) if 2 <= len(b.rows) < len(b.weights)]
    return model, max(partial, key=lambda batch: len(batch.rows))


def row_losses(model):
    return lambda scores, labels: losses(model.contract, scores, labels)


def filled(model, batch, radius):
    fill_adversarial(model, batch, row_losses(model), radius)
    out = {}
    for name, p in model.trained():
        out[name], p.grad_sample = p.grad_sample, None
    return out


def ascent_of(model, batch):
    hidden = batch.hidden.clone().requires_grad_()
    first = dataclasses.replace(batch, hidden=hidden)
    (ascent,) = fill_grad_samples(model, first, row_losses(model), also=(hidden,))
    for _, p in model.trained():
        p.grad_sample = None
    return ascent


def test_a_move_is_as_long_as_the_rows_own_tokens_say(shop):
    model, batch = shop
    moves = row_moves(ascent_of(model, batch), batch.hidden, batch.mask, RADIUS)
    for row in range(len(batch.rows)):
        own = batch.hidden[row][batch.mask[row, : batch.hidden.shape[1]]]
        expected = RADIUS * own.norm(dim=1).mean()
        assert moves[row].norm().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_move_raises_each_rows_loss(shop):
    model, batch = shop
    moves = row_moves(ascent_of(model, batch), batch.hidden, batch.mask, 0.01)
    with torch.no_grad():
        before, after = (
            losses(model.contract, model(hidden, batch.mask, batch.wide), batch.labels)
            for hidden in (batch.hidden, batch.hidden + moves)
        )
    real = slice(0, len(batch.rows))
    assert (after[real] > before[real]).all()


def test_padding_and_filling_do_not_move(shop):
    model, batch = shop
    moves = row_moves(ascent_of(model, batch), batch.hidden, batch.mask, RADIUS)
    assert len(batch.rows) < len(batch.weights)
    assert not moves[len(batch.rows) :].any()
    assert not moves[~batch.mask[:, : moves.shape[1]]].any()


@pytest.mark.parametrize("tiny", [0.0, 1e-42, 1e-30])
def test_a_gradient_of_zero_moves_nothing_and_a_small_one_the_whole_way(tiny):
    ascent = torch.zeros(2, 3, 4)
    ascent[0, 1, 2] = tiny
    ascent[1, 0, 0] = 5.0
    hidden, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    lengths = row_moves(ascent, hidden, mask, 1.0).flatten(1).norm(dim=1).tolist()
    assert lengths[1] == pytest.approx(2.0)
    assert lengths[0] == pytest.approx(2.0) if tiny == 1e-30 else 0 <= lengths[0] < 2.0


def test_a_row_that_is_not_finite_spoils_itself_alone(shop):
    model, batch = shop
    clean = filled(model, batch, RADIUS)
    hidden = batch.hidden.clone()
    hidden[1] = torch.nan
    spoilt = filled(model, dataclasses.replace(batch, hidden=hidden), RADIUS)
    others = [row for row in range(len(hidden)) if row != 1]
    for name, grad in spoilt.items():
        assert torch.equal(grad[others], clean[name][others]), name


def test_filling_has_gradients_of_exactly_zero(shop):
    model, batch = shop
    for name, grad in filled(model, batch, RADIUS).items():
        assert not grad[len(batch.rows) :].any(), name


def test_a_radius_of_nearly_nothing_is_the_ordinary_gradient(shop):
    model, batch = shop
    fill_grad_samples(model, batch, row_losses(model))
    ordinary = {name: p.grad_sample for name, p in model.trained()}
    for name, grad in filled(model, batch, 1e-12).items():
        assert torch.equal(grad, ordinary[name]), name
    far = filled(model, batch, RADIUS)
    assert not torch.allclose(far["head.weight"], ordinary["head.weight"], rtol=1e-3)


def test_training_takes_the_contracts_radius(variant, model_for, records, monkeypatch):
    seen = []

    def recorded(model, batch, losses, radius):
        seen.append(radius)
        fill_adversarial(model, batch, losses, radius)

    monkeypatch.setattr(loop, "fill_adversarial", recorded)
    ends = []
    for radius in (0.0, RADIUS):
        contract = variant(private=False, training={"adversarial": radius})
        model, plan = model_for(contract), mechanism_plan(contract, "small")
        examples = Examples(model, contract, records(60))
        source = SeededRandom(0, plan)
        start = model.initial_adapter()
        ends.append(train(model, examples, plan, start, sampling=source, noise=source))
        assert set(seen) == ({radius} if radius else set())
    assert not np.array_equal(ends[0]["head.weight"], ends[1]["head.weight"])

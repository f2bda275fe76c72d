import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from credit_client.training.examples import Batch, Examples
from credit_client.training.gradients import fill_grad_samples, summed_gradients
from credit_client.training.loop import losses
from credit_client.training.optimizer import NoisySumOptimizer
from credit_client.training.randomness import SecureRandom
from credit_client.training.shapes import MOST_ROWS
from credit_common.backbone import resolve_backbone
from credit_common.model import CreditModel
from credit_common.privacy import mechanism_plan
from credit_common.sections import Model
from credit_common.text import wide_width

KINDS = ("binary", "multiclass", "regression")
ROWS = 6


def filled(model, batch):
    """Name -> per-sample gradients, (rows, *shape)."""
    fill_grad_samples(model, batch, lambda s, y: losses(model.contract, s, y))
    out = {}
    for name, p in model.trained():
        out[name] = p.grad_sample
        p.grad_sample = None
    return out


def some(model, n=ROWS, seed=0, length=16):
    """A batch of random frozen outputs with padding of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    spec, task = model.contract.model, model.contract.task
    hidden = mask = wide = None
    if model.reads_text:
        hidden = torch.randn((n, length, model.hidden), generator=draw)
        own = torch.randint(2, length + 1, (n, 1), generator=draw)
        mask = torch.arange(length)[None] < own
        if not model.trained_layers:
            hidden = hidden[:, :1]
    if "wide" in spec.train:
        wide = torch.rand((n, wide_width(model.contract)), generator=draw) / 8
    labels = {
        "binary": torch.randint(0, 2, (n,), generator=draw).float(),
        "multiclass": torch.randint(0, 3, (n,), generator=draw).float(),
        "regression": torch.rand((n,), generator=draw),
    }[task.kind]
    return Batch(
        rows=np.arange(n), hidden=hidden, mask=mask, wide=wide, labels=labels, weights=torch.ones(n)
    )


def rows_of(batch, rows):
    cut = {
        name: None if getattr(batch, name) is None else getattr(batch, name)[rows]
        for name in ("hidden", "mask", "wide", "labels", "weights")
    }
    return Batch(rows=np.arange(len(cut["labels"])), **cut)


class Plain(nn.Module):
    """The same model in transformers' and peft's own layers, all tokens through all of them."""

    def __init__(self, model):
        super().__init__()
        self.kept = [model]  # in a list: its frozen parts are no parts of this module
        if model.reads_text and model.trained_layers:
            self.layers = nn.ModuleList(model.bert.encoder.layer[model.frozen_layers :])
        if model.reads_text:
            self.head = model.head
        if "wide" in model.contract.model.train:
            self.wide = model.wide

    def forward(self, hidden, mask, wide):
        (model,) = self.kept
        score = model.offset
        if model.reads_text:
            bias = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
            before = hidden
            for layer in getattr(self, "layers", ()):
                out = layer(hidden, bias)
                before, hidden = hidden, out[0] if isinstance(out, tuple) else out
            read = hidden[:, 0]
            if model.trained_layers:  # otherwise it is in what is kept
                mean = (before * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
                read = read + model.contract.model.mean_weight * mean
            cls = (read - model.reference) / model.reference.norm()
            score = score + self.head(cls * model.contract.model.text_scale)
        if wide is not None:
            score = score + self.wide(wide)
        return score


def by_autograd(model, batch):
    """The same gradients from autograd on batches of one row of the plain model."""
    plain, trained = Plain(model), dict(model.trained())
    each = {name: [] for name in trained}
    for row in range(len(batch.labels)):
        one = rows_of(batch, slice(row, row + 1))
        scores = plain(one.hidden, one.mask, one.wide)
        loss = losses(model.contract, scores, one.labels).sum()
        for name, grad in zip(
            trained, torch.autograd.grad(loss, list(trained.values())), strict=True
        ):
            each[name].append(grad)
    return {name: torch.stack(grads) for name, grads in each.items()}


def furthest(ours, theirs):
    """Largest difference of any row of any tensor, over the row's norm."""
    assert set(ours) == set(theirs)
    worst = 0.0
    for name in ours:
        assert ours[name].shape == theirs[name].shape
        gap = (ours[name] - theirs[name]).flatten(1).norm(dim=1)
        size = theirs[name].flatten(1).norm(dim=1)
        assert (size > 0).all(), name  # a gradient of zero would agree with anything
        worst = max(worst, (gap / size).max().item())
    return worst


@pytest.mark.parametrize("targets", [("query", "value"), ("query",), ("value",)])
@pytest.mark.parametrize("factors", ["fedavg", "ffa"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("mean_weight", [0.0, 1.0])
def test_each_gradient_is_autograds_of_a_batch_of_one(
    variant, model_for, shaken, layers, factors, targets, mean_weight
):
    read = {"layers": layers, "targets": targets, "mean_weight": mean_weight}
    model = model_for(variant(model={"factors": factors, **read}))
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    ours = filled(model, batch)
    assert set(ours) == set(model.schema())
    assert all(grad.dtype == torch.float32 for grad in ours.values())
    assert furthest(ours, by_autograd(model, batch)) < 1e-5
    bent = {name: grad.clone() for name, grad in ours.items()}
    bent[f"lora.{3 - layers}.{targets[0]}.B"][2] *= 1.0001
    assert furthest(bent, ours) > 5e-5  # an error of one in ten thousand is seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "train", [("lora", "head", "wide"), ("lora", "head"), ("head", "wide"), ("wide",)]
)
@pytest.mark.parametrize("head_bias", [True, False])
def test_each_gradient_is_autograds_whatever_the_task_and_the_groups(
    variant, model_for, shaken, task, kind, train, head_bias
):
    spec = {"train": train, "text_scale": 3.0, "head_bias": head_bias}
    model = model_for(variant(task=task[kind], model=spec))
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    assert furthest(filled(model, batch), by_autograd(model, batch)) < 1e-5


@pytest.mark.slow
def test_each_gradient_is_autograds_in_the_pinned_minilm(minilm_model, contract, records, shaken):
    model = minilm_model
    examples = Examples(model, contract, records(5))
    model.load_adapter(shaken(model, scale=0.1))
    for batch in examples.batches(np.arange(5)):
        real = rows_of(batch, slice(0, len(batch.rows)))
        assert furthest(filled(model, real), by_autograd(model, real)) < 1e-5


def by_opacus(model, batch):
    from opacus.grad_sample import GradSampleModule

    hooked = GradSampleModule(Plain(model).train(), batch_first=True, loss_reduction="sum")
    try:
        scores = hooked(batch.hidden, batch.mask, batch.wide)
        losses(model.contract, scores, batch.labels).sum().backward()
        return {name: p.grad_sample.clone() for name, p in model.trained()}
    finally:
        hooked.remove_hooks()
        model.eval()
        for _, p in model.trained():
            p.grad, p.grad_sample = None, None


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradients_are_those_of_opacus_own_hooks(
    variant, model_for, shaken, task, layers, kind
):
    model = model_for(variant(task=task[kind], model={"layers": layers}))
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    assert furthest(filled(model, batch), by_opacus(model, batch)) < 1e-5


@pytest.mark.parametrize("layers", [1, 3])
def test_a_rows_gradient_does_not_know_its_companions(variant, model_for, shaken, layers):
    model = model_for(variant(model={"layers": layers}))
    model.load_adapter(shaken(model, scale=0.1))
    mine, others, huge = (
        some(model, MOST_ROWS),
        some(model, MOST_ROWS, 1),
        some(model, MOST_ROWS, 2),
    )
    huge.hidden.mul_(100)
    alone = {name: grad[0] for name, grad in filled(model, mine).items()}
    for companions in (others, huge):
        mixed = Batch(
            rows=mine.rows,
            **{
                name: torch.cat([getattr(mine, name)[:1], getattr(companions, name)[1:]])
                for name in ("hidden", "mask", "wide", "labels", "weights")
            },
        )
        for name, grad in filled(model, mixed).items():
            assert torch.equal(grad[0], alone[name]), name


class BatchMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_a_layer_that_mixes_rows_would_be_seen(variant, model_for, shaken, monkeypatch):
    model = model_for(variant())
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    alone = filled(model, batch)
    score = model.score
    monkeypatch.setattr(model, "score", lambda cls, wide: score(BatchMean()(cls), wide))
    mixed = filled(model, batch)
    batch.hidden[1:] *= -1
    other = filled(model, batch)
    assert not torch.allclose(mixed["head.weight"][0], other["head.weight"][0])
    assert not torch.allclose(mixed["head.weight"][0], alone["head.weight"][0])


@pytest.mark.parametrize("train", [("lora", "head", "wide"), ("wide",)])
def test_rows_of_weight_zero_have_gradients_of_exactly_zero(variant, model_for, shaken, train):
    model = model_for(variant(model={"train": train}))
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    whole = filled(model, batch)
    batch.weights[3:] = 0.0
    for name, grad in filled(model, batch).items():
        assert not grad[3:].any(), name
        assert torch.equal(grad[:3], whole[name][:3]), name


def test_filling_leaves_no_ordinary_gradient(variant, model_for, shaken):
    model = model_for(variant())
    model.load_adapter(shaken(model, scale=0.1))
    filled(model, some(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture(scope="module")
def in_bf16(tiny_bert):
    """The same model with bfloat16 products."""

    def make(model):
        return CreditModel(
            model.contract, resolve_backbone(model.contract.model), "cpu", "bfloat16"
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_gradients_in_bf16_point_the_same_way_in_the_pinned_minilm(
    contract, model_for, in_bf16, records, shaken, layers
):
    model = model_for(dataclasses.replace(contract, model=Model(rank=4, layers=layers)))
    half, adapter = in_bf16(model), shaken(model, scale=0.05)
    model.load_adapter(adapter)
    half.load_adapter(adapter)
    examples = Examples(model, model.contract, records(6))
    for batch in examples.batches(np.arange(6)):
        real = rows_of(batch, slice(0, len(batch.rows)))
        exact, ours = filled(model, real), filled(half, real)
        for name, grad in ours.items():
            assert grad.dtype == torch.float32
            a, b = grad.flatten(1).double(), exact[name].flatten(1).double()
            assert torch.cosine_similarity(a, b).min() >= 0.999, name
        one, other = (own(real.hidden, real.mask, real.wide) for own in (half, model))
        assert 0 < (one - other).abs().max() < 0.02  # it is in bf16, and not far off


@pytest.mark.parametrize("bf16", [False, True])
def test_a_users_contribution_is_bounded_in_either_precision(
    variant, model_for, shaken, in_bf16, bf16
):
    contract = variant(model={"layers": 2}, privacy={"clip_norm": 0.01})
    model = model_for(contract)
    model = in_bf16(model) if bf16 else model
    model.load_adapter(shaken(model, scale=0.1))
    plan = mechanism_plan(contract, "small")
    optimizer = NoisySumOptimizer(
        torch.optim.SGD([p for _, p in model.trained()], lr=1.0), plan, SecureRandom()
    )
    whole = some(model, 40)
    for row in range(40):
        optimizer.zero_grad()
        alone = rows_of(whole, slice(row, row + 1))
        fill_grad_samples(model, alone, lambda s, y: losses(model.contract, s, y))
        optimizer.accumulate()
        total = torch.cat([p.summed_grad.flatten() for p in optimizer.params])
        assert 0.999 * plan.clip_norm < total.norm() <= plan.clip_norm
    optimizer.zero_grad()


@pytest.mark.parametrize("factors", ["fedavg", "ffa"])
def test_what_a_release_holds_is_the_same_in_either_precision(variant, model_for, in_bf16, factors):
    model = model_for(variant(model={"factors": factors, "layers": 2}))
    half = in_bf16(model)
    assert half.bf16
    assert not model.bf16
    assert torch.equal(half.reference, model.reference)
    for mine, theirs in (
        (half.initial_adapter(), model.initial_adapter()),
        (half.fixed(), model.fixed()),
    ):
        assert mine.keys() == theirs.keys()
        for name, array in mine.items():
            assert array.dtype == np.float32
            assert np.array_equal(array, theirs[name]), name
    assert bool(half.fixed()) == (factors == "ffa")


def test_in_bf16_products_are_rounded_and_sums_between_layers_are_not(variant, model_for, in_bf16):
    model = in_bf16(model_for(variant(model={"layers": 2})))
    kinds = {}

    def note(name):
        def hook(module, inputs, out):
            kinds[name] = (inputs[0].dtype, out.dtype)

        return hook

    for name, module in model.bert.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(note(name))
    batch, taps = some(model), []
    model.text_features(batch.hidden, batch.mask, taps)
    assert {tap.out.dtype for tap in taps} == {torch.bfloat16}
    norms = {kind for name, kind in kinds.items() if name.endswith("LayerNorm")}
    assert norms == {(torch.float32, torch.float32)}
    dense = {kind[1] for name, kind in kinds.items() if name.endswith("dense")}
    assert dense == {torch.bfloat16}
    assert model.bert.config._attn_implementation == "eager"


@pytest.mark.parametrize("layers", [1, 3])
def test_summed_gradients_are_the_sums_of_the_rows_own(variant, model_for, shaken, layers):
    model = model_for(variant(model={"layers": layers}))
    model.load_adapter(shaken(model, scale=0.1))
    batch = some(model)
    batch.weights[4:] = 0.0
    sums = summed_gradients(model, batch, lambda s, y: losses(model.contract, s, y))
    each = filled(model, batch)
    for (name, p), total in zip(model.trained(), sums, strict=True):
        expected = each[name].sum(0)
        assert p.grad is None
        assert (total - expected).norm() < 1e-5 * expected.norm(), name

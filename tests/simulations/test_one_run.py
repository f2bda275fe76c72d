import ast
import dataclasses
import math
from bisect import bisect_right
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from credit_client.training.gradients import fill_grad_samples
from credit_client.training.loop import losses
from credit_client.training.randomness import SecureRandom
from credit_common.errors import CreditError, PrivacyError
from credit_simulations.audited import Cohort, coordinates, rounds
from credit_simulations.membership import gradients
from credit_simulations.one_run import (
    BROKEN,
    CONFIDENCE,
    NORM,
    FixedKey,
    Guesses,
    canary_run,
    directions,
    fill_with_canaries,
    guess,
    noise_of_round,
)

DELTA = 1e-5


def bound(made, right, delta=0.0, canaries=None):
    return Guesses(canaries=canaries or made, made=made, right=right).lower_bound(delta)


@pytest.mark.parametrize("made", [30, 100, 1000])
def test_all_right_without_delta_is_the_binomial_bound(made):
    accuracy = (1 - CONFIDENCE) ** (1 / made)
    assert bound(made, made) == pytest.approx(math.log(accuracy / (1 - accuracy)), abs=1e-6)


def literal_p_value(m, r, v, epsilon, delta):
    """Theorem 5.2 term by term, with whole numbers where there are some."""
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))

    def chance(w):
        return math.comb(r, w) * accuracy**w * (1 - accuracy) ** (r - w)

    alpha = max(sum(chance(w) for w in range(v - i, v)) / i for i in range(1, v + 1))
    return sum(chance(w) for w in range(v, r + 1)) + 2 * m * delta * alpha


@pytest.mark.parametrize(("m", "r", "v"), [(50, 20, 1), (50, 20, 13), (50, 20, 20), (400, 100, 88)])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_p_value_is_that_of_the_theorem(m, r, v, epsilon, delta):
    found = Guesses(canaries=m, made=r, right=v).p_value(epsilon, delta)
    assert found == pytest.approx(min(1.0, literal_p_value(m, r, v, epsilon, delta)), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-4])
@pytest.mark.parametrize("made", [50, 120])
def test_the_bound_passes_the_true_epsilon_in_at_most_five_percent_of_runs(epsilon, delta, made):
    """Exactly, for the mechanism that is hardest: each coin is told by randomized response."""
    accuracy = delta + (1 - delta) / (1 + math.exp(-epsilon))
    first = bisect_right(range(made + 1), epsilon, key=lambda v: bound(made, v, delta, 4 * made))
    assert 0 < binom.sf(first - 1, made, accuracy) <= 1 - CONFIDENCE


def test_guesses_without_knowledge_seldom_prove_anything():
    draw = np.random.default_rng(3)
    proved = [
        guess(draw.standard_normal(400), draw.random(400) < 0.5).lower_bound(DELTA) > 0
        for _ in range(1000)
    ]
    assert np.mean(proved) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_the_bound_grows_with_right_guesses_and_falls_with_delta():
    bounds = [bound(100, v, DELTA) for v in range(101)]
    assert bounds == sorted(bounds)
    assert bounds[0] == bounds[50] == 0 < bounds[70] < bounds[100]
    assert bound(100, 95, 1e-3) < bound(100, 95, DELTA) <= bound(100, 95)


def test_guesses_are_taken_from_both_ends():
    scores = np.arange(16.0)
    assert guess(scores, scores >= 8) == Guesses(canaries=16, made=4, right=4)
    assert guess(scores, scores < 8).right == 0
    ends = np.asarray([s in (0, 1, 14, 15) for s in scores])
    assert guess(scores, ends).right == 2


def test_directions_are_distinct_and_stand_in_A_where_it_has_room(subject_of):
    model = subject_of().model
    inside = coordinates(model, "lora.", ".A")
    at, signs = directions(model, len(inside))
    assert sorted(at) == sorted(inside)
    assert set(signs) == {-1.0, 1.0}
    wider, _ = directions(model, len(inside) + 1)
    assert len(set(wider)) == len(inside) + 1
    everything = sum(math.prod(shape) for shape in model.schema().values())
    with pytest.raises(CreditError, match=f"only {everything} directions"):
        directions(model, everything + 1)


def samples(model):
    taken = [p.grad_sample.flatten(1).numpy().copy() for _, p in model.trained()]
    return np.concatenate(taken, axis=1)


def test_a_canary_row_holds_its_own_gradient_and_a_users_row_is_untouched(subject_of):
    subject = subject_of()
    model, m = subject.model, 300
    at, signs = directions(model, m)
    height = 7.0 * signs
    cohort = Cohort(subject.users, np.arange(60), np.arange(0, m, 3).repeat(2))
    fill, seen = partial(fill_with_canaries, at, height, model), np.zeros(m)

    def row_losses(scores, labels):
        return losses(model.contract, scores, labels)

    for batch in cohort.batches(np.arange(len(cohort))):
        fill(batch, row_losses)
        rows = samples(model)
        if hasattr(batch, "canaries"):
            for row, canary in zip(rows, batch.canaries, strict=False):
                assert np.flatnonzero(row).tolist() == [at[canary]]
                assert row[at[canary]] == height[canary]
                seen[canary] += 1
            assert not rows[len(batch.canaries) :].any()
        else:
            fill_grad_samples(model, batch, row_losses)
            assert np.array_equal(rows, samples(model))
    assert np.array_equal(seen, 2.0 * (np.arange(m) % 3 == 0))


def test_canaries_and_users_are_each_sampled_once(subject_of):
    cohort = Cohort(subject_of().users, np.arange(0, 60, 2), np.arange(100))
    assert len(cohort) == 130
    users, canaries = [], []
    for batch in cohort.batches(np.arange(0, 130, 5)):
        (canaries if hasattr(batch, "canaries") else users).extend(batch.rows.tolist())
    assert sorted(users) == list(range(0, 60, 10))
    assert sorted(canaries) == list(range(0, 100, 5))


def test_the_sums_of_a_round_are_read_off_the_adapter(subject_of, everyone):
    subject = subject_of(steps=1, rounds=1, sampling_rate=1.0)
    (seen,) = rounds(subject, subject.schedule, everyone(subject))
    expected = gradients(subject, subject.schedule, seen.before).sum(0, dtype=np.float64)
    assert np.abs(seen.sums - expected).max() < 1e-3 * np.abs(expected).max()


def taken_part(subject, rows=1, changed=lambda plan: plan):
    """What a canary of norm NORM adds to a full step with next to no noise, along its direction."""
    plan = dataclasses.replace(subject.schedule, epsilon=2.0, noise_multiplier=1e-4)
    at, signs = directions(subject.model, 40)
    height = signs * NORM * plan.clip_norm
    cohort = Cohort(subject.users, np.zeros(0, np.intp), np.arange(20).repeat(rows))
    fill = partial(fill_with_canaries, at, height)
    (seen,) = rounds(subject, changed(plan), cohort, fill=fill)
    return signs * seen.sums[at]


@pytest.mark.parametrize("clip", [0.5, 1.0])
def test_one_user_adds_the_clip_norm_and_the_broken_variants_add_more(subject_of, clip):
    subject = subject_of(steps=1, rounds=1, sampling_rate=1.0, clip_norm=clip)
    broken = {
        "sound": (taken_part(subject), clip),
        "five rows": (taken_part(subject, rows=BROKEN["five rows a user"].rows), 5 * clip),
        "no clip": (taken_part(subject, changed=BROKEN["no clip"].changed), NORM * clip),
    }
    for name, (scores, expected) in broken.items():
        assert scores[:20] == pytest.approx(expected, rel=1e-3), name
        assert np.abs(scores[20:]).max() < 1e-3 * clip, name


def test_the_broken_variant_without_clipping_keeps_the_noise(subject_of):
    plan = dataclasses.replace(subject_of().schedule, epsilon=2.0, noise_multiplier=3.0)
    run = BROKEN["no clip"].changed(plan)
    assert run.noise_multiplier * run.clip_norm == pytest.approx(
        plan.noise_multiplier * plan.clip_norm
    )
    assert run.clip_norm > 10 * NORM * plan.clip_norm


@pytest.mark.parametrize("source", [FixedKey, SecureRandom])
def test_only_noise_under_a_known_key_can_be_taken_out_again(subject_of, everyone, source):
    subject = subject_of(steps=3, rounds=1, sampling_rate=1.0)
    plan = dataclasses.replace(subject.schedule, epsilon=2.0, noise_multiplier=3.0)
    (seen,) = rounds(subject, plan, everyone(subject), noise=source)
    quiet = dataclasses.replace(plan, noise_multiplier=1e-4)
    (exact,) = rounds(subject, quiet, everyone(subject))
    left = seen.sums - noise_of_round(subject.model, plan, source()) - exact.sums
    deviation = plan.noise_multiplier * plan.clip_norm * math.sqrt(plan.steps)
    if source is FixedKey:  # the noise has moved the weights, so the gradients are not the same
        assert left.std() < 0.3 * deviation
    else:
        assert left.std() > 1.2 * deviation


def test_the_plan_of_a_claim_stays_within_it(subject_of):
    subject = subject_of()
    plan = subject.plan(2.0)
    assert plan.private
    assert 1.95 < plan.train_epsilon() <= 2.0
    assert math.isinf(subject.plan(None).train_epsilon())


def test_a_sound_run_stands_and_broken_ones_are_caught(subject_of):
    # Three layers: A has a number for each canary, where no user's own gradient hides it.
    subject = subject_of(rounds=2, steps=4, layers=3)
    sound = canary_run(subject, 2.0, 600)
    assert sound.canaries == 600
    assert sound.lower_bound(DELTA) < 2.0
    # With 250 "no clip" is missed in one run of 250. Five rows a user needs more than these too.
    for name in ("no noise", "fixed seed", "no clip"):
        assert canary_run(subject, 2.0, 600, BROKEN[name]).lower_bound(DELTA) > 2.0, name


def test_a_private_run_takes_no_noise_but_secure_noise(subject_of, everyone):
    subject = subject_of()

    class Silent:
        def uniform(self, n):
            return np.zeros(n)

        def normal(self, n):
            return np.zeros(n)

    with pytest.raises(PrivacyError, match="SecureRandom alone"):
        next(rounds(subject, subject.plan(2.0), everyone(subject), noise=Silent))


def test_no_holder_gives_train_another_gradient():
    """Canaries enter through `fill` alone; outside simulations nothing ever passes it."""
    root, calls = Path(__file__).parents[2], []
    for folder in ("client", "server", "common"):
        for module in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(module.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "train":
                    keywords = {keyword.arg for keyword in node.keywords}
                    calls.append((module.name, len(node.args), keywords))
    assert calls == [
        ("app.py", 0, set()),  # the decorator of the ClientApp
        ("app.py", 4, {"sampling", "noise"}),
        ("gate.py", 0, set()),  # calls what it is given, without arguments
    ]

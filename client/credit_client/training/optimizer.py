"""Opacus' DPOptimizer, with the parts replaced that would break the claim.

What is replaced, and why (numbers are rows of the privacy specification):

- the sum over examples is float64 and bounded by (1 - 1e-6) C, since float32 norms and sums round
  (16);
- an example whose gradient is not finite counts as zero, and nobody learns how many were (6);
- where the plan bounds each group of weights, each group's part of an example is clipped to its own
  bound, and the noise stays that of C (20);
- the noise comes from the source that it is given, in float64, never from torch's generator (2);
- a step's noised sum is snapped to a grid that does not depend on the data (11);
- the denominator is the plan's public one, never a count (1);
- an empty batch is noised and stepped like any other (14), and each round starts clean (15).
"""

import math
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from credit_client.training.randomness import RandomSource, add_noise
from credit_common.errors import PrivacyError
from credit_common.privacy import MechanismPlan

_MARGIN = 1.0 - 1e-6


class NoisySumOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus ships no types
    """Clips each example, sums, adds noise once per step, divides by the public denominator.

    Call `accumulate` after each backward pass over a physical batch, then `step`.

    Args:
        optimizer: What steps on the noised mean. Where the plan has a `group_clip`, each of its
            parameter groups says under "group" which group of weights it is.
        plan: Bounds, noise and the public denominator.
        noise: Where the noise comes from.

    Raises:
        PrivacyError: If the plan bounds groups, but not one that the optimizer has.
    """

    def __init__(self, optimizer: Optimizer, plan: MechanismPlan, noise: RandomSource) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm if plan.private else math.inf,
            expected_batch_size=plan.expected_batch_size,
        )
        self._plan = plan
        self._noise = noise
        self._parts = _parts(self.param_groups, plan)

    def accumulate(self) -> None:
        """Add the clipped gradients of one physical batch to the step's sum, and forget them."""
        self.clip_and_accumulate()
        for p in self.params:
            p.grad_sample = None

    def clip_and_accumulate(self) -> None:
        """Clip each example to the plan's bounds and add it to `summed_grad`, float64."""
        # MPS has no float64: there the sums are made on the CPU, and converted there.
        params = self.params
        exact = [p.grad_sample.flatten(1).to(_sums_on(p)).to(torch.float64) for p in params]
        squares = [torch.linalg.vector_norm(row, dim=1).square() for row in exact]
        norms = [torch.stack([squares[i] for i in part]).sum(0).sqrt() for part, _ in self._parts]
        finite = torch.isfinite(norms[0] if len(norms) == 1 else torch.stack(norms).sum(0))
        whole = bool(finite.all())
        for norm, (part, bound) in zip(norms, self._parts, strict=True):
            factor = torch.ones_like(norm)
            if math.isfinite(bound):
                factor = (bound * _MARGIN / norm.clamp_min(1e-30)).clamp(max=1.0)
            factor = torch.where(finite, factor, 0.0)
            for i in part:
                p, row = params[i], exact[i]
                clean = row if whole else torch.where(finite[:, None], row, 0.0)
                total = (factor @ clean).view_as(p)
                p.summed_grad = total if p.summed_grad is None else p.summed_grad + total

    def accumulate_sums(self, sums: tuple[Tensor, ...]) -> None:
        """Add gradients that are summed over rows already, which no private step may be.

        Raises:
            PrivacyError: If the plan is private: what is not clipped row by row has no bound.
        """
        if self._plan.private:
            raise PrivacyError("a private step takes per-sample gradients alone")
        for p, grad in zip(self.params, sums, strict=True):
            total = grad.to(_sums_on(p)).to(torch.float64)
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total

    def pre_step(self, closure: None = None) -> bool:
        """Noise and scale the step's sum into `grad`; an empty batch has the sum zero."""
        for p in self.params:
            if p.summed_grad is None:
                p.summed_grad = torch.zeros(p.shape, dtype=torch.float64, device=_sums_on(p))
        self.add_noise()
        self.scale_grad()
        return True

    def add_noise(self) -> None:
        """Add the plan's noise to each sum and snap the result to the grid."""
        deviation = self.noise_multiplier * self._plan.clip_norm
        for p in self.params:
            exact: Tensor = p.summed_grad
            noised = add_noise(exact.cpu().numpy(), deviation, self._noise)
            p.grad = torch.from_numpy(noised).to(p.dtype).to(p.device)

    def scale_grad(self) -> None:
        """Divide by the plan's public expected batch size."""
        for p in self.params:
            p.grad /= self._plan.expected_batch_size

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget everything of the last step."""
        for p in self.params:
            p.grad_sample = None
            p.summed_grad = None
        self.original_optimizer.zero_grad(set_to_none)


def _parts(groups: list[dict[str, Any]], plan: MechanismPlan) -> list[tuple[list[int], float]]:
    """What is clipped as one: positions among the optimizer's parameters, and their bound."""
    names = [group.get("group") for group in groups for p in group["params"] if p.requires_grad]
    if not plan.private:
        return [(list(range(len(names))), math.inf)]
    if not plan.group_clip:
        return [(list(range(len(names))), plan.clip_norm)]
    unknown = sorted({str(name) for name in names} - {group for group, _ in plan.group_clip})
    if unknown:
        raise PrivacyError(f"privacy.group_clip has no bound for the weights of {unknown[0]!r}")
    parts = [
        ([i for i, name in enumerate(names) if name == group], bound)
        for group, bound in plan.group_clip
    ]
    return [(members, bound) for members, bound in parts if members]


def _sums_on(p: Tensor) -> torch.device:
    return torch.device("cpu") if p.device.type == "mps" else p.device

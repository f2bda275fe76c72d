"""The reference engine: the release's model in PyTorch, in float32, as its federation has it."""

import numpy as np
import torch
from numpy.typing import NDArray

from credit_client.scoring.engine import Engine
from credit_common.backbone import resolve_backbone
from credit_common.device import device_of
from credit_common.errors import TrustError
from credit_common.model import CreditModel
from credit_common.release import Release


def open_reference(release: Release, device: str = "cpu") -> Engine:
    """The model of a release in PyTorch; every other engine is measured against it.

    Raises:
        TrustError: If the backbone at hand is not the one of the release.
        WireError: If the release does not fit the backbone.
        BackboneError, FetchError: If the backbone cannot be had.
    """
    return engine_of(open_model(release, device))


def open_model(release: Release, device: str = "cpu") -> CreditModel:
    """The release's model with its weights, ready to score.

    Raises:
        TrustError, WireError, BackboneError, FetchError: As `open_reference`.
    """
    spec = release.contract.model
    backbone = resolve_backbone(spec) if spec.reads_text else None
    if backbone is not None and backbone.sha256 != release.backbone_sha256:
        raise TrustError(f"{release.folder}: was trained on a backbone of another SHA-256")
    # float32 everywhere: a score is the documented function, whatever the processor.
    model = CreditModel(release.resolved, backbone, device_of(device), "float32")
    model.load_fixed(release.fixed)
    model.load_adapter(release.adapter)
    return model


def use_threads(threads: int) -> None:
    """Let PyTorch compute on so many threads."""
    torch.set_num_threads(threads)


def engine_of(model: CreditModel) -> Engine:
    """An engine that scores with a model as it is, whatever adapter is loaded into it."""

    def forward(
        ids: NDArray[np.int64] | None,
        mask: NDArray[np.bool_] | None,
        wide: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        hidden = seen = features = None
        with torch.inference_mode():
            if ids is not None and mask is not None:
                seen = torch.from_numpy(mask).to(model.device)
                hidden = model.frozen(torch.from_numpy(ids).to(model.device), seen)
            if wide is not None:
                features = torch.from_numpy(wide).to(model.device)
            scores: NDArray[np.float32] = model(hidden, seen, features).cpu().numpy()
        return scores

    reads = model.reads_text
    return Engine(
        contract=model.contract,
        forward=forward,
        tokens=model.tokens if reads else None,
        padding=model.tokenizer.pad_token_id if reads else 0,
    )

"""Which BERT: the pinned default, a local folder, or a hub id; safetensors only, digest checked."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.errors import BackboneError
from credit_common.fetch import MINILM_SHA256, fetch_minilm
from credit_common.sections import Model

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A folder with a BERT's config, tokenizer and weights, its digest checked."""

    folder: Path
    sha256: str


def resolve_backbone(model: Model) -> Backbone:
    """Find the contract's backbone and check its digest.

    Raises:
        BackboneError: If there are no safetensors weights, the digest differs from the contract's,
            or the model is not a BERT.
        FetchError: If the pinned default is not cached and cannot be fetched.
    """
    if model.backbone == "minilm-l6":
        folder, expected = fetch_minilm(), MINILM_SHA256
    else:
        folder = Path(model.backbone).expanduser()
        expected = model.backbone_sha256
        if not folder.is_dir():
            folder = _from_hub(model.backbone)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise BackboneError(
            f"backbone {model.backbone}: no {WEIGHTS} in its folder; "
            "weights in other formats are not opened"
        )
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise BackboneError(
            f"backbone {model.backbone}: {WEIGHTS} has SHA-256 {found}, the contract has {expected}"
        )
    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind != "bert":
        raise BackboneError(f"backbone {model.backbone}: model_type is {kind!r}, must be 'bert'")
    return Backbone(folder=folder, sha256=found)


def _from_hub(name: str) -> Path:
    # Imported here: most runs use the pinned default and need no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", WEIGHTS, "tokenizer*", "vocab.txt", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HFValidationError:
        raise BackboneError(f"backbone {name}: neither a folder nor a hub id") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise BackboneError(
            f"backbone {name}: not a folder, and the hub cannot be reached or does not have it; "
            "download it where there is a network and name its folder in the contract"
        ) from None


def width_of(model: Model) -> int | None:
    """Numbers of a token's hidden state, from the configuration alone; no weights are looked at.

    None where the backbone is a hub's, or its configuration cannot be read.
    """
    if model.backbone == "minilm-l6":
        return 384
    try:
        text = (Path(model.backbone).expanduser() / "config.json").read_text("utf-8")
        width = json.loads(text)["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return width if isinstance(width, int) else None


def load_bert(backbone: Backbone) -> Any:
    """The frozen BertModel in float32 on the CPU, every dropout 0, in evaluation mode."""
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # its load report lists the pooler, which nothing here uses
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(
        backbone.folder,
        add_pooling_layer=False,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
        hidden_dropout_prob=0.0,
        local_files_only=True,
        use_safetensors=True,
    )
    return bert.float().eval().requires_grad_(False)


def write_out_attention(bert: Any) -> None:
    """Make a BertModel's attention of products and a softmax, instead of torch's fused one."""
    bert.set_attn_implementation("eager")


def load_tokenizer(backbone: Backbone) -> Any:
    """The backbone's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone.folder, local_files_only=True)


def token_ids(tokenizer: Any, texts: list[str], longest: int) -> list[NDArray[np.int64]]:
    """Token ids of each text with [CLS] and [SEP], cut at `longest` tokens, not padded."""
    if not texts:
        return []
    encoded = tokenizer(texts, truncation=True, max_length=longest, padding=False)
    return [np.asarray(ids, np.int64) for ids in encoded["input_ids"]]

"""A release: adapter, head, contract, model card and privacy statement as one folder.

    adapter_config.json, adapter_model.safetensors   LoRA as PEFT keeps it, where LoRA is trained
    head.safetensors     head.weight, head.bias, wide.weight (those that are trained), reference,
                         text_scale, offset: all that `release_scores` needs, float32; and
                         edges.NAME of each field whose edges are federated
    contract.toml        the federation file as it was given
    README.md            the model card: what it is, and how to open it without this project
    privacy.json         who is promised what, and what is not
    release.json         facts, figures, backbone, and the SHA-256 of every other file

The SHA-256 of release.json stands for all of it. Nothing in it is a pickle, and opening one needs
no torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from credit_common import lora
from credit_common.card import base_model, model_card
from credit_common.claim import Facts as Facts
from credit_common.claim import (
    check_claim,
    facts_from_json,
    facts_to_json,
    privacy_statement,
    released_figures,
)
from credit_common.contract import Contract, parse_contract
from credit_common.errors import ContractError, PrivacyError, TrustError, WireError
from credit_common.evaluation import figures_to_json
from credit_common.sealed import json_bytes, open_sealed, write_sealed
from credit_common.statistics import EDGES, Edges, edge_arrays, take_edges
from credit_common.text import wide_width

if TYPE_CHECKING:
    from credit_common.model import Arrays, CreditModel

FORMAT = 1
OTHER_ACCOUNTANT = 1e-3
"""Share by which ε may be lower by another version of dp-accounting, which rounds losses otherwise:
a release is opened years after it was written."""
MANIFEST, HEAD, CONTRACT = "release.json", "head.safetensors", "contract.toml"
CARD, PRIVACY = "README.md", "privacy.json"
_KEYS = ("format", "federation", "contract_digest", "backbone", "facts", "figures", "intervals")
_TRAINED = ("head.weight", "head.bias", "wide.weight")


@dataclass(frozen=True, kw_only=True)
class Release:
    """An opened and checked release.

    Attributes:
        contract, contract_text: The federation file, parsed and as it stands.
        adapter: What `CreditModel.load_adapter` takes.
        fixed: What `CreditModel.load_fixed` takes: LoRA's A where it does not train, or nothing.
        head: What `release_scores` takes.
        edges: Of the fields whose edges are federated; they are in `head` too.
        backbone_sha256: Of the backbone's model.safetensors; None where no text is read.
        digest: SHA-256 of release.json, which holds those of all other files.
    """

    folder: Path
    contract: Contract = field(repr=False)
    contract_text: str = field(repr=False)
    adapter: "Arrays" = field(repr=False)
    fixed: "Arrays" = field(repr=False)
    head: Mapping[str, NDArray[np.float32]] = field(repr=False)
    edges: Edges = field(repr=False)
    facts: Facts
    backbone_sha256: str | None
    digest: str

    @property
    def resolved(self) -> Contract:
        """The contract with all edges: what records are scored under."""
        return self.contract.with_edges(self.edges)


def new_release_folder(home: Path) -> Path:
    """The next free place for a release: home/releases/001, 002, ... It is not made yet."""
    folder = home / "releases"
    taken = [int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d{3,9}", p.name)]
    return folder / f"{max(taken, default=0) + 1:03d}"


def write_release(
    folder: Path,
    contract_text: str,
    model: "CreditModel",
    adapter: "Arrays",
    facts: Facts,
    edges: Edges | None = None,
) -> None:
    """Write a release, whole or not at all.

    Args:
        folder: Its place, which must not exist.
        contract_text: The federation file that the model was made of.
        model: Gives the public constants; its own adapter is not looked at.
        adapter: What is released.
        facts: What the card and the statement say beside the contract.
        edges: Of the contract's federated fields, which the adapter was trained under.

    Raises:
        TrustError: If the contract's text is not the model's contract.
        ContractError: If the edges are not those that the contract asks for.
        PrivacyError: If the facts claim more privacy than the rounds left.
        WireError: If the adapter does not fit the model, the folder exists, or it cannot be
            written.
    """
    from credit_common.model import check_adapter

    contract = parse_contract(contract_text)
    if contract.digest != model.contract.digest:
        raise TrustError("the contract's text has another digest than the model's contract")
    check_adapter(model.schema(), adapter)
    check_claim(contract, facts)
    contract.with_edges(edges or {})
    backbone = model.backbone
    manifest = {
        "format": FORMAT,
        "federation": contract.federation.name,
        "contract_digest": contract.digest,
        "backbone": backbone and {"name": contract.model.backbone, "sha256": backbone.sha256},
        "facts": facts_to_json(facts),
        **figures_to_json(released_figures(contract, facts)),
    }
    contents = _contents(contract_text, model, adapter, facts, edges or {})
    write_sealed(folder, MANIFEST, manifest, contents)


def open_release(folder: Path) -> Release:
    """Open a release and check all of it: files, digests, names, shapes, and what ε it tells.

    Raises:
        TrustError: If a file's digest, or the contract's, is another than release.json says.
        WireError: If a file is missing, unknown or malformed, or if its facts claim more privacy
            than the contract's rounds left.
    """
    sealed = open_sealed(folder, MANIFEST, _KEYS)
    files, manifest = sealed.files, sealed.manifest
    sha256 = _checked_manifest(folder / MANIFEST, manifest)
    text, contract = _checked_contract(folder / CONTRACT, files, manifest)
    needed = {HEAD, CONTRACT, CARD, PRIVACY}
    if "lora" in contract.model.train:
        needed |= {lora.CONFIG_FILE, lora.WEIGHTS_FILE}
    if set(files) != needed:
        odd = sorted(set(files) ^ needed)
        raise WireError(f"{folder / odd[0]}: is missing, or has no place in a release")
    head = _head(folder / HEAD, contract, _tensors(folder / HEAD, files[HEAD]))
    factors = _factors(folder / lora.WEIGHTS_FILE, contract, files, head)
    constant = contract.model.factors == "ffa"
    fixed = {n: array for n, array in factors.items() if constant and n.endswith(".A")}
    adapter = {n: array for n, array in factors.items() if n not in fixed}
    adapter |= {name: head[name] for name in _TRAINED if name in head}
    return Release(
        folder=folder,
        contract=contract,
        contract_text=text,
        adapter=dict(sorted(adapter.items())),
        fixed=fixed,
        head=head,
        edges=_edges(folder / HEAD, contract, head),
        facts=_facts(folder / MANIFEST, contract, manifest),
        backbone_sha256=sha256,
        digest=sealed.digest,
    )


def release_scores(
    head: Mapping[str, NDArray[np.float32]],
    read: NDArray[np.floating[Any]] | None,
    wide: NDArray[np.floating[Any]] | None,
) -> NDArray[np.float32]:
    """Scores of a release, from what its head reads of the BERT with its adapter.

        read = last_hidden_state[:, 0] + mean_weight * mean of hidden_states[-2] over its tokens
        features = (read - reference) / |reference| * text_scale
        score = features @ head.weight.T [+ head.bias] + wide @ wide.weight.T + offset

    Args:
        head: The arrays of head.safetensors.
        read: (n, hidden); None where the contract reads no text.
        wide: (n, wide_width), see `credit_common.text`; None where that part is not trained.

    Returns:
        (n, outputs): logits, or the value in [0, 1] of a regression.
    """
    score: NDArray[Any] = head["offset"]
    if read is not None:
        features = (read - head["reference"]) / np.linalg.norm(head["reference"])
        score = score + features * head["text_scale"] @ head["head.weight"].T
        score = score + head.get("head.bias", np.float32(0))
    if wide is not None:
        score = score + wide @ head["wide.weight"].T
    return score.astype(np.float32)


def _contents(
    contract_text: str, model: "CreditModel", adapter: "Arrays", facts: Facts, edges: Edges
) -> dict[str, bytes]:
    contract = model.contract
    head = {name: adapter[name] for name in _TRAINED if name in adapter} | edge_arrays(edges)
    head["offset"] = np.array([model.offset], np.float32)
    files = {
        CONTRACT: contract_text.encode(),
        PRIVACY: json_bytes(privacy_statement(contract, facts)),
    }
    sha256 = model.backbone.sha256 if model.backbone else None
    if model.reference is not None:
        head["reference"] = model.reference[0].cpu().numpy()
        head["text_scale"] = np.array([contract.model.text_scale], np.float32)
    if "lora" in contract.model.train:
        factors = {n: a for n, a in adapter.items() if n.startswith("lora.")} | model.fixed()
        depth = model.frozen_layers + model.trained_layers
        files |= lora.peft_files(contract.model, depth, base_model(contract.model), factors)
    files[HEAD] = save_tensors({name: np.ascontiguousarray(head[name]) for name in sorted(head)})
    files[CARD] = model_card(contract, facts, sha256, edges, head).encode()
    return files


def _checked_manifest(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """The backbone's digest, which is None where no text is read."""
    if manifest["format"] != FORMAT:
        raise WireError(f"{path}: its format must be {FORMAT}, the only one known")
    backbone = manifest["backbone"]
    if backbone is None:
        return None
    known = isinstance(backbone, dict) and set(backbone) == {"name", "sha256"}
    if not known or not all(isinstance(value, str) for value in backbone.values()):
        raise WireError(f"{path}: backbone must have name and sha256, or be null")
    return str(backbone["sha256"])


def _checked_contract(
    path: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]
) -> tuple[str, Contract]:
    try:
        text = files[CONTRACT].decode()
        contract = parse_contract(text)
    except KeyError:
        raise WireError(f"{path}: is missing") from None
    except UnicodeDecodeError:
        raise WireError(f"{path}: is not UTF-8 text") from None
    except ContractError as error:
        raise WireError(f"{path}: {error}") from None
    if contract.digest != manifest["contract_digest"]:
        raise TrustError(f"{path}: its digest is not the one in {MANIFEST}")
    if contract.federation.name != manifest["federation"]:
        raise TrustError(f"{path}: its federation is not the one in {MANIFEST}")
    if contract.model.reads_text == (manifest["backbone"] is None):
        raise WireError(f"{path}: backbone must be in {MANIFEST} if text is read, and only then")
    return text, contract


def _facts(path: Path, contract: Contract, manifest: Mapping[str, Any]) -> Facts:
    try:
        facts = facts_from_json(manifest["facts"])
        check_claim(contract, facts, OTHER_ACCOUNTANT)
        figures = figures_to_json(released_figures(contract, facts))
    except (WireError, PrivacyError) as error:
        raise WireError(f"{path}: {error}") from None
    for name, told in figures.items():
        if manifest[name] != told:
            raise WireError(f"{path}: its {name} are not those of its histogram")
    return facts


def _head(
    path: Path, contract: Contract, tensors: dict[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    outputs = contract.task.outputs
    shapes: dict[str, tuple[int, ...]] = {"offset": (1,)}
    if contract.model.reads_text:
        hidden = tensors["reference"].size if "reference" in tensors else 0
        shapes |= {"reference": (hidden,), "text_scale": (1,)}
        shapes["head.weight"] = (outputs, hidden)
        if contract.model.head_bias:
            shapes["head.bias"] = (outputs,)
    if "wide" in contract.model.train:
        shapes["wide.weight"] = (outputs, wide_width(contract))
    shapes |= {f"{EDGES}{f.name}": (f.bins - 1,) for f in contract.federated_fields}
    if set(tensors) != set(shapes):
        odd = sorted(set(tensors) ^ set(shapes))
        raise WireError(f"{path}: {odd[0]} is missing, or is not one of its arrays")
    for name, shape in shapes.items():
        _check_array(path, name, tensors[name], shape)
    return tensors


def _edges(path: Path, contract: Contract, head: Mapping[str, NDArray[np.float32]]) -> Edges:
    _, edges = take_edges(contract, head)
    try:
        contract.with_edges(edges)
    except ContractError as error:
        raise WireError(f"{path}: {error}") from None
    return edges


def _factors(
    path: Path,
    contract: Contract,
    files: Mapping[str, bytes],
    head: Mapping[str, NDArray[np.float32]],
) -> dict[str, NDArray[np.float32]]:
    if "lora" not in contract.model.train:
        return {}
    factors = lora.from_peft(contract.model, _tensors(path, files[path.name]), str(path))
    hidden, rank = head["reference"].size, contract.model.rank
    for name, array in factors.items():
        _check_array(path, name, array, (rank, hidden) if name.endswith("A") else (hidden, rank))
    return factors


def _check_array(path: Path, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise WireError(f"{path}: {name} is {array.dtype} {array.shape}, must be float32 {shape}")
    if not np.isfinite(array).all():
        raise WireError(f"{path}: {name} has values that are not finite")


def _tensors(path: Path, content: bytes) -> dict[str, NDArray[Any]]:
    try:
        return dict(load_tensors(content))
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise WireError(f"{path}: is not in safetensors format") from None

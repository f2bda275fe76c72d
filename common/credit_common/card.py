"""The model card of a release: what it is, and how somebody else opens it.

It has the Hub's form: a YAML header, then plain words. Its code block is all that a person with
numpy, safetensors, transformers and peft needs to get a score; tests run it as it stands.
"""

import json
import math
import re
import textwrap
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from credit_common.card_groups import COUNTED, NOT_COUNTED, groups_part
from credit_common.card_points import scorecard_part
from credit_common.claim import Facts, promise, released_figures
from credit_common.contract import Contract
from credit_common.evaluation import read_calibration
from credit_common.fields import NumberField
from credit_common.record import Record
from credit_common.sections import Model
from credit_common.statistics import Edges
from credit_common.text import record_text, wide_features, wide_width

HUB_IDS = {"minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}
"""Where the pinned backbones are had on the Hub: the same weights, by digest."""


def base_model(spec: Model) -> str:
    """Where somebody else gets the backbone: a hub id, or the contract's folder."""
    return HUB_IDS.get(spec.backbone, spec.backbone)


def model_card(
    contract: Contract,
    facts: Facts,
    backbone_sha256: str | None,
    edges: Edges | None = None,
    head: Mapping[str, NDArray[np.float32]] | None = None,
) -> str:
    """README.md of a release, Markdown with the Hub's YAML header.

    Args:
        contract: As it was agreed on.
        facts: Of the training.
        backbone_sha256: Of its model.safetensors; None where no text is read.
        edges: What the federation found of them; none where all stand in the contract.
        head: Arrays of head.safetensors; with them, a binary task's card shows its points.
    """
    resolved = contract.with_edges(edges or {})
    name, kind = contract.federation.name, contract.task.kind
    what = {
        "binary": "the probability that a user defaults",
        "multiclass": "the probability of each class of outcome of a user",
        "regression": "an outcome of a user, as a number",
    }[kind]
    groups = groups_part(contract, facts)
    parts = [
        _header(contract),
        f"# {name}\n\n{contract.federation.description}".strip(),
        f"## What it is for\n\nIt estimates {what} from a record that follows `contract.toml`, at "
        "a merchant of this federation or one whose users are like theirs. A person who knows the "
        "trade should look at its figures on their own data before it takes part in a decision.",
        _training(contract, facts, backbone_sha256),
        _figures(contract, facts),
        *([groups] if groups else []),
        *([scorecard_part(resolved, head)] if kind == "binary" and head is not None else []),
        f"## Privacy\n\n{promise(contract, facts)} `privacy.json` has the whole statement.",
        "## Limits\n\n"
        "- It has learnt from the users of the holders that took part, at the time of their data. "
        "Populations drift: compare scores with outcomes.\n"
        "- Its probabilities may need calibration.\n"
        f"{COUNTED if groups else NOT_COUNTED}\n"
        "- Texts are cut at the contract's length, and values outside the contract's ranges and "
        "codes are treated as it says.",
        _opening(resolved),
    ]
    return "\n\n".join(parts) + "\n"


def _header(contract: Contract) -> str:
    spec = contract.model
    lines = ["---", "license: apache-2.0"]
    if "lora" in spec.train:
        lines.append("library_name: peft")
    base = base_model(spec)
    if spec.reads_text and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base):
        lines.append(f"base_model: {json.dumps(base)}")
    tags = ["credit-scoring", "federated-learning"]
    tags += ["lora"] if "lora" in spec.train else []
    tags += ["differential-privacy"] if contract.privacy.private else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _training(contract: Contract, facts: Facts, sha256: str | None) -> str:
    spec = contract.model
    trained = {
        "lora": f"LoRA of rank {spec.rank} on {' and '.join(sorted(spec.targets))} of the top "
        + ("layer" if spec.layers == 1 else f"{spec.layers} layers"),
        "head": "a linear head on [CLS]"
        + (" and the mean of the last layer's input" if spec.mean_weight else ""),
        "wide": "a linear part on the record's numbers and codes",
    }
    lines = [
        "## What it was trained on",
        f"The data of at least {facts.holders} holders of the federation "
        f"`{contract.federation.name}`, which stayed with them: {facts.rounds} rounds of federated "
        f"averaging, finished {facts.created}. Trained: "
        + ", ".join(trained[group] for group in spec.train)
        + ".",
    ]
    if spec.reads_text:
        lines.append(
            f"The backbone, frozen: `{base_model(spec)}`, SHA-256 of `model.safetensors`\n"
            f"`{sha256}`."
        )
    lines.append(f"Digest of the contract:\n`{contract.digest}`.")
    return "\n\n".join(lines)


def _figures(contract: Contract, facts: Facts) -> str:
    if facts.histogram is None:
        return "## Figures\n\nNone were released."
    noised = ", with noise for their privacy" if contract.privacy.private else ""
    rows = [
        f"| {name} | {_told(figure.value)} | {_told(figure.low)} to {_told(figure.high)} |"
        for name, figure in released_figures(contract, facts).items()
    ]
    return "\n\n".join(
        [
            "## Figures",
            f"Read off counts of the hold-out users of {facts.evaluated} holders{noised}. "
            "The interval covers, 95 times in 100, what these users' counts say without the noise; "
            "other users may differ by more.",
            "| figure | value | interval |\n|---|---:|---:|\n" + "\n".join(rows),
            *([_calibration(contract, facts)] if contract.task.kind == "binary" else []),
        ]
    )


def _calibration(contract: Contract, facts: Facts) -> str:
    counts = np.array(facts.histogram, np.float64)
    rows = [
        f"| {row.low:.4f} to {row.high:.4f} | {round(row.users)} | {_told(row.observed)} "
        f"| {low:.4f} to {high:.4f} |"
        for row, (low, high) in read_calibration(contract, counts, facts.evaluated)
    ]
    return (
        "Observed defaults by what the model said; each row has an interval of its own:\n\n"
        "| probability said | users | observed | interval |\n|---|---:|---:|---:|\n"
        + "\n".join(rows)
    )


def _told(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "not available"


def _opening(contract: Contract) -> str:
    spec, numbers = contract.model, sum(isinstance(f, NumberField) for f in contract.wide_fields)
    lines = [
        "## How to open it",
        "In this folder, with numpy, safetensors, torch, transformers and peft; the record is one "
        "made of the contract's edges and codes:",
        f"```python\n{code_block(contract)}\n```",
    ]
    if spec.reads_text:
        lines.append(
            "`text` is what BERT reads: the fields' `text` of `contract.toml`, in its order, with "
            "`{}` filled in (numbers to six digits, codes by their label), joined by blanks. "
            "Missing values and empty labels say nothing."
        )
    if "wide" in spec.train:
        scale = 1 + numbers + len(contract.wide_fields)
        lines.append(
            "`wide` is a constant 1, then for each field in the contract's order: a number's bin "
            "(one cell each; an edge belongs to the bin above it), a cell for missing, and the "
            "bin's position from -1 to 1; a code's cell, and cells for other and missing. An event "
            f"list counts as its numbers, window by window. The row is divided by sqrt({scale}) * "
            "1.000001."
        )
    federated = ", ".join(f"`{f.name}`" for f in contract.federated_fields)
    if federated:
        noised = " with noise for their privacy" if contract.privacy.private else ""
        lines.append(
            f"The edges of {federated} are not in `contract.toml`. They are quantiles of the "
            "holders' training users over the fine grid that it declares, read off counts by cell"
            f"{noised} before the first round, and stand in `head.safetensors` as `edges.NAME`."
        )
    lines.append(
        {
            "binary": "The probability of default is 1 / (1 + exp(-score)). Points are base_score "
            "+ pdo / ln 2 * (-score - ln base_odds), by the contract's scorecard: "
            f"{contract.scorecard.base_score:g}, {contract.scorecard.pdo:g}, "
            f"{contract.scorecard.base_odds:g}.",
            "multiclass": "The probabilities are the softmax of the scores, in the order of the "
            "contract's classes.",
            "regression": "The value is low + score * (high - low), by the contract's range.",
        }[contract.task.kind]
    )
    return "\n\n".join(lines)


def code_block(contract: Contract) -> str:
    """Python that prints the score of an example record, (1, outputs), run in the folder."""
    spec, record = contract.model, _example(contract)
    lora = "lora" in spec.train
    lines = ["import numpy as np"]
    lines += ["import torch"] if spec.reads_text else []
    lines += ["from peft import PeftModel"] if lora else []
    lines += ["from safetensors.numpy import load_file"]
    lines += ["from transformers import AutoTokenizer, BertModel"] if spec.reads_text else []
    lines += ["", 'head = load_file("head.safetensors")', 'score = head["offset"]']
    if spec.reads_text:
        lines += [
            "",
            f"backbone = {_quoted(base_model(spec))}  # or a folder that has it",
            f"text = {_quoted(record_text(contract, record))}",
            "bert = BertModel.from_pretrained(backbone, add_pooling_layer=False)",
            *(['bert = PeftModel.from_pretrained(bert, ".")'] if lora else []),
            "bert.float().eval()",
            "tokenizer = AutoTokenizer.from_pretrained(backbone)",
            f"tokens = tokenizer(text, truncation=True, max_length={spec.tokens}, "
            'return_tensors="pt")',
            "with torch.no_grad():",
            *_reading(spec.mean_weight),
            'centred = (read - head["reference"]) / np.linalg.norm(head["reference"])',
            'score = score + head["text_scale"] * centred @ head["head.weight"].T',
            *(['score = score + head["head.bias"]'] if spec.head_bias else []),
        ]
    if "wide" in spec.train:
        row = wide_features(contract, record)
        # A no-break space keeps place and value on one line.
        cells = ", ".join(f"{place}:\u00a0{row[place]:.8g}" for place in np.flatnonzero(row))
        wrapped = textwrap.wrap(cells, 76, break_on_hyphens=False)
        lines += [
            "",
            f"wide = np.zeros((1, {wide_width(contract)}), np.float32)",
            "cells = {",
            *("    " + line.replace("\u00a0", " ") for line in wrapped),
            "}",
            "for place, value in cells.items():",
            "    wide[0, place] = value",
            'score = score + wide @ head["wide.weight"].T',
        ]
    return "\n".join([*lines, "", "print(score)"])


def _reading(mean_weight: float) -> list[str]:
    """Lines that make `read`, (1, hidden), of one text, so that no token is padding."""
    if mean_weight == 0:
        return ["    read = bert(**tokens).last_hidden_state[:, 0].numpy()"]
    return [
        "    out = bert(**tokens, output_hidden_states=True)",
        f"read = out.last_hidden_state[:, 0] + {mean_weight!r} * out.hidden_states[-2].mean(1)",
        "read = read.numpy()",
    ]


def _quoted(text: str) -> str:
    """A string literal of Python; plain JSON would write a letter beyond 16 bits as two."""
    return json.dumps(text, ensure_ascii=False)


def _example(contract: Contract) -> Record:
    """A made-up record: each number's first edge, each category's last code, no texts."""
    values: dict[str, float | str | None] = {
        f.name: f.edges[0] if isinstance(f, NumberField) else f.values[-1]
        for f in contract.wide_fields
    }
    return Record(values=values, protected={}, label=None)

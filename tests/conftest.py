import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import tomllib
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from credit_common.contract import Contract, parse_contract
from credit_common.record import Record

# torch and what needs it is imported in the fixtures: most tests do without.

# A loaded machine may stand still for longer than Hypothesis' deadline of an example, and no run
# may fail by its examples' luck: they are the same each time, others if HYPOTHESIS_PROFILE=random.
settings.register_profile(
    "same", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("random", settings.get_profile("same"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_configure(config: pytest.Config) -> None:
    """Witnesses of ledgers lie in the user's state folder: not in that of whoever runs tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts behind
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt their children
    folder = tempfile.TemporaryDirectory(prefix="credit-tests-")
    os.environ["XDG_STATE_HOME"] = folder.name  # before test modules copy the environment
    config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files marked `long` come first in the workers' shares, dealt out by their seconds.

    xdist gives each worker the next of equally many tests, and lets who is done take over the end
    of another's share: what is long must not be begun when the others are nearly done.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    seconds = {item.path: m.args[0] for item in items if (m := item.get_closest_marker("long"))}
    dealt: list[list[Path]] = [[] for _ in range(workers)]
    for path in sorted(seconds, key=lambda path: -seconds[path]):
        min(dealt, key=lambda own: sum(map(seconds.__getitem__, own))).append(path)
    others = [item for item in items if item.path not in seconds]
    ordered, left = [], len(items)
    for number, own in enumerate(dealt):
        share = [item for path in own for item in items if item.path == path]
        size = left // (workers - number)
        left -= size
        filled = max(0, size - len(share))
        ordered += share + others[:filled]
        del others[:filled]
    items[:] = ordered + others


NOTE = "paid late twice then bought shoes and a lamp on a rainy day for the new flat"

CONTRACT = """\
format = 1

[federation]
name = "shop-credit"

[task]
kind = "binary"
label = "defaulted"
positive = ["1"]
negative = ["0"]
base_rate = 0.2

[record]
user = "user"
time = "at"

[split]
salt = "a public salt"
holdout = 0.25

[model]
layers = 1
rank = 4

[training]
rounds = 3
steps = 2
sampling_rate = 0.1
learning_rate = { lora = 0.1, head = 0.2 }

[privacy]
epsilon = 4.0
delta = 1e-5
noise_multiplier = 1.0
size_classes = { small = 300, large = 3000 }

[evaluation]
noise_multiplier = 2.0

[[fields]]
name = "user"
kind = "identifier"

[[fields]]
name = "phone"
kind = "identifier"

[[fields]]
name = "age"
kind = "number"
range = [18, 100]
edges = [25, 40, 60]
text = "age {}"

[[fields]]
name = "income"
kind = "number"
unit = "thousand"
range = [0, 500]
edges = [10, 50]
outside = "reject"
missing = "reject"
text = "income {}"

[[fields]]
name = "tenure"
kind = "number"
range = [0, 40]
edges = [1, 5]
outside = "missing"
missing = "impute"
impute = 2.0

[[fields]]
name = "home"
kind = "category"
values = { P = "owns a home", R = "rents", none = "" }
text = "who {}"

[[fields]]
name = "job"
kind = "category"
values = ["clerk", "driver"]
unknown = "reject"
text = "works as {}"

[[fields]]
name = "note"
kind = "text"
max_chars = 120

[[fields]]
name = "at"
kind = "time"

[[fields]]
name = "orders"
kind = "events"
windows = [7, 30]
aggregations = ["sum", "count", "recency", "mean"]
until = "at"
text = "orders {}"
[fields.edges]
sum = [10, 100]
count = [1, 5]
recency = [3, 14]
mean = [5, 20]

[[fields]]
name = "sex"
kind = "protected"
values = ["f", "m"]

[[fields]]
name = "secret"
kind = "dropped"
"""
FEDERATED = (
    CONTRACT.replace("edges = [25, 40, 60]", 'edges = "federated"\nbins = 4\ncells = 41')
    .replace("edges = [10, 50]", 'edges = "federated"\nbins = 5\nscale = "log"')
    .replace("[[fields]]", "[statistics]\nnoise_multiplier = 8.0\n\n[[fields]]", 1)
)


GROUPED = CONTRACT.replace(
    "[evaluation]\n",
    '[decision]\napprove_below = 0.15\ndecline_from = 0.4\n\n[evaluation]\ngroups = ["sex"]\n',
)


@pytest.fixture(scope="session")
def contract_text() -> str:
    """A small federation file with a field of each kind."""
    return CONTRACT


@pytest.fixture(scope="session")
def contract() -> Contract:
    return parse_contract(CONTRACT)


@pytest.fixture(scope="session")
def federated_text() -> str:
    """The same with federated edges of age (4 bins of 41 cells) and income (5 of 200, log)."""
    return FEDERATED


@pytest.fixture(scope="session")
def federated() -> Contract:
    return parse_contract(FEDERATED)


@pytest.fixture(scope="session")
def grouped_text() -> str:
    """The same with cut-offs, and counts by sex at the last of its three rounds."""
    return GROUPED


@pytest.fixture(scope="session")
def grouped() -> Contract:
    return parse_contract(GROUPED)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """A random three-layer BERT with the MiniLM tokenizer: deep enough to sweep the depth."""
    import torch
    from transformers import BertConfig, BertModel

    from credit_common.fetch import fetch_minilm

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.25,  # large enough that attention is not uniform
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(5)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for file in fetch_minilm().iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def model_for():
    """The model of a contract in float32, whatever units the processor has, made once."""
    from credit_common.backbone import resolve_backbone
    from credit_common.model import CreditModel

    made: dict[str, CreditModel] = {}

    def make(contract: Contract) -> CreditModel:
        if contract.digest not in made:
            backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
            made[contract.digest] = CreditModel(contract, backbone, precision="float32")
        return made[contract.digest]

    return make


@pytest.fixture(scope="session")
def records():
    """Users with texts of mixed lengths; a young user with a low income defaults."""

    def make(n: int, kind: str = "binary", seed: int = 0) -> list[Record]:
        draw = np.random.default_rng(seed)
        out = []
        for _ in range(n):
            age, income = float(draw.uniform(18, 100)), float(draw.uniform(0, 100))
            words = draw.choice(NOTE.split(), int(draw.integers(0, 40)))
            values = {
                "age": age,
                "income": income,
                "home": str(draw.choice(["P", "R"])),
                "note": " ".join(words) or None,
                "orders_count_7": float(draw.integers(0, 9)),
            }
            label = {
                "binary": float(age < 40),
                "multiclass": float(np.digitize(age, [40, 60])),
                "regression": (age - 18) / 82,
            }[kind]
            out.append(Record(values=values, protected={}, label=label))
        return out

    return make


@pytest.fixture(scope="session")
def shaken():
    """An adapter of a model's schema with no zeros in it."""

    def make(model, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(seed)
        return {
            name: (scale * draw.standard_normal(shape)).astype(np.float32)
            for name, shape in model.schema().items()
        }

    return make


@pytest.fixture(scope="session")
def federation_file(tiny_bert):
    """The text of the small federation file on the tiny BERT, with keys of its tables changed.

    A key of None is left out.
    """
    digest = hashlib.sha256((tiny_bert / "model.safetensors").read_bytes()).hexdigest()

    def make(*, private=True, pinned=False, federated=False, **changes) -> str:
        tables = tomllib.loads(FEDERATED if federated else CONTRACT)
        own = {} if pinned else {"backbone": str(tiny_bert), "backbone_sha256": digest}
        tables["model"] |= own
        if not private:
            del tables["privacy"]["epsilon"], tables["privacy"]["noise_multiplier"]
            tables["evaluation"]["noise_multiplier"] = 0.0
            tables.pop("statistics", None)
        for name, keys in changes.items():
            kept = {**tables.get(name, {}), **keys}
            tables[name] = {key: value for key, value in kept.items() if value is not None}
        fields = tables.pop("fields")
        lines = [f"{name} = {_toml(value)}" for name, value in tables.items()]
        for field in fields:
            lines += ["[[fields]]", *(f"{_toml(key)} = {_toml(v)}" for key, v in field.items())]
        return "\n".join(lines) + "\n"

    return make


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


_VOID = {"meta", "br", "img", "link", "hr", "input"}


class _Page(HTMLParser):
    """Tags with their attributes, text, and whether each tag is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def parsed_page():
    """Reads the text of a page: its tags, whether they are closed, and its words."""
    return _Page


@pytest.fixture
def browsed(tmp_path):
    """Opens a page in headless Chromium: the DOM that it ends with, and what was logged."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here")

    def browse(page: str) -> tuple[str, str]:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        done = subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--enable-logging=stderr",
                "--virtual-time-budget=3000",
                f"--user-data-dir={tmp_path / 'profile'}",
                "--dump-dom",
                file.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout, done.stderr

    return browse

import contextlib
import dataclasses
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_common.checked import build
from credit_common.contract import Contract, load_contract, parse_contract
from credit_common.errors import ContractError
from credit_common.fields import NumberField
from credit_common.sections import NAME, LearningRates, Privacy, Split, Training

FIELD = 'name = "age"\nkind = "number"\nrange = [18, 100]\nedges = [25, 40, 60]'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("delta = 1e-5", "delta = 0.5", ["privacy.delta", "0.5", "(0, 0.001]"]),
        ("epsilon = 4.0", "epsilon = 400", ["privacy.epsilon", "400", "(0, 50]"]),
        ("epsilon = 4.0", "epsilon = 0", ["privacy.epsilon", "0", "(0, 50]"]),
        ("noise_multiplier = 1.0", "noise_multiplier = 0.1", ["privacy.noise_multiplier", "0.2"]),
        ("noise_multiplier = 2.0", "noise_multiplier = 0", ["evaluation.noise_multiplier", "0.2"]),
        ("{ small = 300,", "{ small = 0,", ["privacy.size_classes.small", "at least 1"]),
        ("{ small = 300, large = 3000 }", "{}", ["privacy.size_classes", "at least one"]),
        ("sampling_rate = 0.1", "sampling_rate = 0.0", ["training.sampling_rate", "(0, 1]"]),
        ("rounds = 3", "rounds = 0", ["training.rounds", "between 1 and 10000"]),
        ("rounds = 3", "rounds = 3.0", ["training.rounds", "an integer"]),
        ("rounds = 3", "rounds = true", ["training.rounds", "True", "an integer"]),
        ("lora = 0.1", "lora = -0.1", ["training.learning_rate.lora", "-0.1", "1000"]),
        ("steps = 2", "steps = 2\nadversarial = -1", ["training.adversarial", "0 and 10"]),
        (
            "delta = 1e-5",
            "group_clip = { lora = 0.1 }",
            ["privacy.group_clip", "['lora']"],
        ),
        ("delta = 1e-5", "group_clip = { lora = 0 }", ["privacy.group_clip.lora", "positive"]),
        ("delta = 1e-5", "group_clip = { top = 1 }", ["privacy.group_clip", "'top'", "'lora'"]),
        ("rank = 4", "rank = 65", ["model.rank", "65", "between 1 and 64"]),
        ("rank = 4", 'backbone = "other"', ["model.backbone_sha256", "SHA-256"]),
        ("rank = 4", 'train = ["lora", "wide"]', ["model.train", "head"]),
        ("rank = 4", 'factors = "magic"', ["model.factors", "'magic'", "'ffa'"]),
        ('salt = "a public salt"', 'salt = "short"', ["split.salt", "8 characters"]),
        ("holdout = 0.25", "holdout = 0.9", ["split.holdout", "0.9", "between 0 and 0.5"]),
        ('negative = ["0"]', 'negative = ["1"]', ["task.negative", "task.positive"]),
        ('negative = ["0"]', "", ["task.positive", "task.negative"]),
        ('label = "defaulted"', 'label = "age"', ["task.label", "age"]),
        ('label = "defaulted"', "label = 3", ["task.label", "3", "str"]),
        ('user = "user"', 'user = "age"', ["record.user", "age", "identifier"]),
        ('time = "at"', 'time = "age"', ["record.time", "age", "time field"]),
        ('until = "at"', 'until = "age"', ["fields.orders.until", "age", "time field"]),
        ('"shop-credit"', '"Shop Credit"', ["federation.name", "Shop Credit", "hyphens"]),
        ("edges = [25, 40, 60]", "edges = [40, 25]", ["fields.age.edges", "increasing"]),
        ("edges = [25, 40, 60]", "edges = [25, 400]", ["fields.age.edges", "400", "18.0, 100.0"]),
        ("range = [18, 100]", "range = [100, 18]", ["fields.age.range", "increasing"]),
        ("range = [18, 100]", "range = [18]", ["fields.age.range", "2 values"]),
        ("impute = 2.0", "impute = 99", ["fields.tenure.impute", "99", "inside the range"]),
        ("impute = 2.0", "", ["fields.tenure.impute", "None"]),
        ('values = ["f", "m"]', 'values = ["f"]', ["fields.sex.values", "two"]),
        ('values = ["f", "m"]', 'values = ["f", "f"]', ["fields.sex.values", "different"]),
        ('values = ["clerk", "driver"]', 'values = ["a", "a"]', ["fields.job.values", "repeated"]),
        ('text = "age {}"', 'text = "age"', ["fields.age.text", "{}"]),
        ("max_chars = 120", "max_chars = 0", ["fields.note.max_chars", "1 to 20000"]),
        (
            "max_chars = 120",
            'max_chars = 3\nexamples = ["", "four"]',
            ["fields.note.examples", "4 characters", "at most max_chars = 3"],
        ),
        (
            "max_chars = 120",
            f"examples = {['a'] * 101}",
            ["fields.note.examples", "101 texts", "at most 100"],
        ),
        ("rank = 4", "rank = 4\nhead_bias = 0", ["model.head_bias"]),
        ("windows = [7, 30]", "windows = [30, 7]", ["fields.orders.windows", "increasing"]),
        ("mean = [5, 20]", "", ["fields.orders.edges.mean", "each aggregation"]),
        ("mean = [5, 20]", "mean = [20, 5]", ["fields.orders_mean_7d.edges", "increasing"]),
        ('"recency", "mean"]', '"recency", "sum"]', ["fields.orders.aggregations", "once"]),
        ('kind = "dropped"', 'kind = "drop"', ["fields.secret.kind", "'drop'", "dropped"]),
        ('kind = "dropped"', 'kind = ["dropped"]', ["fields.secret.kind", "dropped"]),
        ('name = "secret"', 'name = "age"', ["fields", "'age'", "once"]),
        ('name = "secret"', 'name = "orders_sum_7d"', ["fields", "orders_sum_7d", "once"]),
        ('name = "secret"', 'name = " "', ["fields.name", "not empty"]),
        ("format = 1", "format = 2", ["format", "2", "1"]),
    ],
)
def test_an_error_names_table_key_value_and_bound(
    contract_text: str, old: str, new: str, said: list[str]
) -> None:
    assert old in contract_text
    with pytest.raises(ContractError) as caught:
        parse_contract(contract_text.replace(old, new, 1))
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rank = 4", "rank = 4\nranks = 4", ["[model]", "'ranks'", "rank"]),
        ("[evaluation]", "[evalution]", ["[evalution]", "evaluation"]),
        ("lora = 0.1", "wdie = 0.1", ["[training.learning_rate]", "'wdie'", "wide"]),
        ("max_chars = 120", "max_char = 120", ["[fields.note]", "'max_char'", "max_chars"]),
        ("sum = [10, 100]", "max = [1]", ["[fields.orders.edges]", "'max'"]),
    ],
)
def test_unknown_keys_are_refused_with_the_known_ones(
    contract_text: str, old: str, new: str, said: list[str]
) -> None:
    with pytest.raises(ContractError) as caught:
        parse_contract(contract_text.replace(old, new, 1))
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("table", ["task", "record", "split", "model", "training", "privacy"])
def test_a_missing_table_is_named(contract_text: str, table: str) -> None:
    tables = re.split(r"\n(?=\[)", contract_text)
    without = "\n".join(part for part in tables if not part.startswith(f"[{table}]"))
    with pytest.raises(ContractError, match=rf"\[{table}\] is missing"):
        parse_contract(without)


@pytest.mark.parametrize("table", ["task", "privacy", "model", "evaluation"])
def test_a_value_in_a_tables_place_is_refused(contract_text: str, table: str) -> None:
    tables = re.split(r"\n(?=\[)", contract_text)
    kept = [part for part in tables if not part.startswith(f"[{table}]")]
    with pytest.raises(ContractError, match=rf"\[{table}\] must be a table"):
        parse_contract("\n".join([f"{table} = 3", *kept]))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1" + "0" * 400])
@pytest.mark.parametrize(
    "key", ["epsilon = 4.0", "delta = 1e-5", "noise_multiplier = 1.0", "holdout = 0.25"]
)
def test_numbers_that_are_not_finite_are_refused(contract_text: str, key: str, number: str) -> None:
    name = key.split(" = ")[0]
    with pytest.raises(ContractError, match=f"{name} = .*a finite number"):
        parse_contract(contract_text.replace(key, f"{name} = {number}", 1))


def test_an_unreadable_file_is_one_error_that_names_it(tmp_path: Any) -> None:
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    (tmp_path / "broken.toml").write_text("[task")
    for name, why in (
        ("none.toml", "No such file"),
        ("latin.toml", "not UTF-8"),
        ("broken.toml", "not valid TOML"),
    ):
        with pytest.raises(ContractError, match=why) as caught:
            load_contract(tmp_path / name)
        assert name in str(caught.value)


def test_the_digest_ignores_order_comments_and_spelling(contract_text: str) -> None:
    head, *fields = contract_text.split("[[fields]]")
    parts = re.split(r"\n(?=\[)", head)
    tables = [
        "\n".join([part.split("\n")[0], *reversed(part.strip().split("\n")[1:])]) for part in parts
    ]
    turned = "\n".join([tables[0], *reversed(tables[1:])])
    other = "[[fields]]".join([turned + "\n", *fields])
    other = other.replace("rank = 4", "rank = 0x4 # of LoRA").replace("1e-5", "0.000_01")
    other = other.replace("[18, 100]", "[\n  18.0,\n  1e2,\n]")
    other = other.replace("small = 300, large = 3000", "large = 3_000, small = 300")
    other = other.replace("range = [0, 500]", "range = [-0.0, 500]").replace("format = 1", "")
    other = other.replace("[split]\n", "[split]\n\n# comment\n\n")
    assert other != contract_text
    assert parse_contract(other).digest == parse_contract(contract_text).digest


def test_stating_a_default_changes_no_digest(contract_text: str, contract: Contract) -> None:
    stated = contract_text.replace(
        "rank = 4", 'rank = 4\nalpha = 16\nfactors = "fedavg"\nmean_weight = 0\nhead_bias = true'
    ).replace("max_chars = 120", "max_chars = 120\nexamples = []")
    plain = 'steps = 2\nupload = "float32"\nserver_learning_rate = 1\nserver_momentum = 0'
    plain += '\naggregation = "mean"\nbyzantine = 0'
    stated = stated.replace("steps = 2", plain)
    assert parse_contract(stated).digest == contract.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shop-credit", "shop-credit-2"),
        ('positive = ["1"]', 'positive = ["1", "2"]'),
        ("base_rate = 0.2", "base_rate = 0.21"),
        ("a public salt", "b public salt"),
        ("holdout = 0.25", "holdout = 0.26"),
        ("rank = 4", "rank = 5"),
        ("rank = 4", "rank = 4\nhead_bias = false"),
        ("max_chars = 120", 'max_chars = 120\nexamples = ["a"]'),
        ("max_chars = 120", 'max_chars = 120\nexamples = [""]'),
        ("steps = 2", 'steps = 2\nupload = "bfloat16"'),
        ("steps = 2", 'steps = 2\nupload = "int8"'),
        ("steps = 2", "steps = 2\nserver_learning_rate = 0.5"),
        ("steps = 2", "steps = 2\nserver_momentum = 0.5"),
        ("lora = 0.1", "lora = 0.1000001"),
        ("epsilon = 4.0", "epsilon = 4.5"),
        ("small = 300", "small = 301"),
        ("small = 300", "tiny = 300"),
        ("noise_multiplier = 2.0", "noise_multiplier = 2.1"),
        ("edges = [25, 40, 60]", "edges = [25, 40, 61]"),
        ('unit = "thousand"', 'unit = "million"'),
        ('R = "rents"', 'R = "lets"'),
        ('values = { P = "owns a home", R = "rents"', 'values = { R = "rents", P = "owns a home"'),
        ('values = ["clerk", "driver"]', 'values = ["driver", "clerk"]'),
        ('name = "secret"', 'name = "secrets"'),
        ('kind = "dropped"', 'kind = "identifier"'),
        ("mean = [5, 20]", "mean = [5, 21]"),
    ],
)
def test_the_digest_changes_with_any_meaning(
    contract_text: str, contract: Contract, old: str, new: str
) -> None:
    assert old in contract_text
    assert parse_contract(contract_text.replace(old, new, 1)).digest != contract.digest


CLIPPED = "delta = 1e-5\ngroup_clip = { lora = 0.3, head = 0.4, wide = 0.5 }"


def test_bounds_of_groups_are_part_of_the_meaning_and_their_order_is_not(
    contract_text: str, contract: Contract
) -> None:
    clipped = contract_text.replace("delta = 1e-5", CLIPPED)
    turned = clipped.replace("lora = 0.3, head = 0.4", "head = 0.4, lora = 0.3")
    other = clipped.replace("lora = 0.3, head = 0.4", "head = 0.3, lora = 0.4")
    digests = [parse_contract(text).digest for text in (clipped, turned, other, contract_text)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert dict(parse_contract(clipped).privacy.group_clip)["wide"] == 0.5
    assert contract.privacy.group_clip == ()


def test_adversarial_training_needs_a_text(contract_text: str) -> None:
    text = contract_text.replace("steps = 2", "steps = 2\nadversarial = 0.5")
    assert parse_contract(text).training.adversarial == 0.5
    with pytest.raises(ContractError, match=r"training\.adversarial = 0\.5: .*no text is read"):
        parse_contract(text.replace("rank = 4", 'rank = 4\ntrain = ["wide"]'))


def test_a_baseline_of_some_groups_keeps_what_is_theirs(contract_text: str) -> None:
    text = contract_text.replace("steps = 2", "steps = 2\nadversarial = 0.5")
    whole = parse_contract(text.replace("delta = 1e-5", CLIPPED))
    wide, text_alone = whole.training_only("wide"), whole.training_only("lora", "head")
    assert wide.training.adversarial == 0
    assert wide.privacy.group_clip == (("wide", 0.5),)
    assert text_alone.training.adversarial == 0.5
    assert dict(text_alone.privacy.group_clip) == {"lora": 0.3, "head": 0.4}


def test_the_order_of_fields_is_part_of_the_meaning(contract: Contract) -> None:
    turned = dataclasses.replace(contract, fields=contract.fields[::-1])
    assert turned.digest != contract.digest


def test_nothing_of_a_contract_can_be_set(contract: Contract) -> None:
    parts = [contract, *(getattr(contract, f.name) for f in dataclasses.fields(contract))]
    for part in [*(p for p in parts if dataclasses.is_dataclass(p)), *contract.fields]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, "changed")  # type: ignore[arg-type]


def test_baselines_keep_everything_but_what_they_say(contract: Contract) -> None:
    plain = contract.without_privacy()
    assert plain.privacy.epsilon is None
    assert plain.privacy.noise_multiplier == plain.evaluation.noise_multiplier == 0
    assert plain.training == contract.training
    wide = contract.training_only("wide")
    assert wide.model.train == ("wide",)
    assert not wide.model.reads_text
    assert len({contract.digest, plain.digest, wide.digest}) == 3


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.one_of(
        st.builds(
            Training,
            rounds=st.integers(1, 100),
            steps=st.integers(1, 100),
            sampling_rate=st.floats(1e-6, 1),
            weight_decay=st.floats(0, 1),
            learning_rate=st.builds(LearningRates, lora=st.floats(1e-9, 10)),
        ),
        st.builds(Privacy, epsilon=st.floats(0.01, 50), noise_multiplier=st.floats(0.2, 100)),
        st.builds(
            Privacy,
            size_classes=st.dictionaries(
                st.from_regex(NAME, fullmatch=True), st.integers(1), min_size=1
            ).map(lambda classes: tuple(classes.items())),
        ),
        st.builds(Split, salt=st.text(min_size=8), holdout=st.floats(0, 0.5)),
        st.lists(FINITE, min_size=3, max_size=8, unique=True).map(
            lambda v: NumberField(
                name="x", range=(min(v), max(v)), edges=tuple(sorted(set(v) - {min(v)}))
            )
        ),
    )
)
def test_build_gives_back_what_a_dataclass_says(made: Any) -> None:
    assert build(type(made), _plain(dataclasses.asdict(made)), "x") == made


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.sampled_from(["task", "split", "model", "training", "privacy", "fields", "record"]),
    st.sampled_from(
        ["", "rounds", "epsilon", "learning_rate", "targets", "size_classes", "group_clip", "salt"]
    ),
)
def test_whatever_stands_in_a_table_gives_a_contract_or_a_contract_error(
    value: Any, table: str, key: str
) -> None:
    tables = tomllib.loads(CONTRACT_HEAD)
    if key and isinstance(tables.get(table), dict):
        tables[table][key] = value
    else:
        tables[table] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda _: tables)  # also what TOML could not spell
        with contextlib.suppress(ContractError):  # any other error is a defect
            assert isinstance(parse_contract(""), Contract)


CONTRACT_HEAD = f"""
[federation]
name = "x"
[task]
label = "y"
positive = ["1"]
negative = ["0"]
[record]
user = "id"
[split]
salt = "abcdefgh"
[model]
train = ["wide"]
[training]
rounds = 1
steps = 1
sampling_rate = 0.5
[privacy]
[[fields]]
name = "id"
kind = "identifier"
[[fields]]
{FIELD}
"""


def _plain(value: Any) -> Any:
    """As TOML has it: lists for tuples, no key for an absent value."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value

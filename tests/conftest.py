import pytest

from credit_common.contract import Contract, parse_contract

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


@pytest.fixture(scope="session")
def contract_text() -> str:
    """A small federation file with a field of each kind."""
    return CONTRACT


@pytest.fixture(scope="session")
def contract() -> Contract:
    return parse_contract(CONTRACT)

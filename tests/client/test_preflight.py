import csv
import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from credit_client.ledger import Ledger
from credit_client.mapping import ShardMapping
from credit_client.preflight import check_floors, inspect
from credit_client.preflight_text import as_json, show
from credit_client.shard import is_holdout, read_shard
from credit_common.contract import load_contract
from credit_common.errors import ContractError, PrivacyError, ShardError
from credit_simulations.data import contract_path
from credit_simulations.packaged import packaged_shards

COLUMNS = [
    "user", "phone", "age", "income", "tenure", "home", "job", "note", "at", "orders", "sex",
    "secret", "defaulted",
]  # fmt: skip
GOOD = {
    "phone": "555",
    "age": "30",
    "income": "20",
    "tenure": "3",
    "home": "P",
    "job": "clerk",
    "note": "pays late",
    "at": "2024-01-05",
    "orders": '[{"time": "2024-01-03", "value": 12}]',
    "sex": "f",
    "secret": "s",
    "defaulted": "1",
}


def users(n, **cells):
    return [{**GOOD, "user": f"u{i}", **cells} for i in range(n)]


@pytest.fixture
def write(tmp_path):
    def save(rows, columns=COLUMNS, header=True, end=""):
        out = io.StringIO()
        writer = csv.writer(out)
        if header:
            writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)
        path = tmp_path / "shard.csv"
        path.write_text(out.getvalue() + end)
        return path

    return save


@pytest.fixture
def ledger(contract):
    with Ledger.in_memory() as made:
        made.bind_split(contract.split.salt, contract.split.holdout, contract.record.user)
        yield made


def look(contract, path, ledger=None, size_class="small", **options):
    return inspect(contract, path, size_class=size_class, ledger=ledger, **options)


def said(preflight):
    out = io.StringIO()
    show(preflight, out)
    return out.getvalue()


def with_budget(contract, **changes):
    return dataclasses.replace(contract, privacy=dataclasses.replace(contract.privacy, **changes))


# What is counted


def test_counts_are_those_of_the_file(contract, write):
    rows = users(200)
    rows += [{**GOOD, "user": "u3"}, {**GOOD, "user": "u4"}]  # two repetitions
    rows += [*users(3, user="bad", income=""), {**GOOD, "user": "", "age": "31"}]
    rows += [{**GOOD, "user": f"x{i}", "age": "old"} for i in range(2)]
    found = look(contract, write(rows, end="short,row\r\n")).local_only
    salt, fraction = contract.split.salt, contract.split.holdout
    held_out = sum(is_holdout(salt, fraction, f"u{i}") for i in range(200))
    assert (found.rows, found.users, found.duplicates) == (209, 200, 4)
    assert (found.train_users, found.holdout_users) == (200 - held_out, held_out)
    assert {(field, why): n for field, why, n in found.rejects} == {
        ("income", "missing"): 1,
        ("user", "user id missing"): 1,
        ("age", "not a number"): 2,
        ("", "row has 2 cells, header has 13"): 1,
    }
    assert found.rejects[0] == ("age", "not a number", 2)


def test_shares_of_missing_and_other_are_whole_percents_of_users(contract, write):
    rows = users(37)
    for i, row in enumerate(rows):
        row["age"] = "" if i < 5 else "30"
        row["note"] = "" if i < 36 else "pays late"
        row["tenure"] = "" if i < 20 else "3"  # filled in by the contract
        row["home"] = "elsewhere" if i < 11 else "P"
        row["sex"] = "x" if i < 2 else ""
    frame = pd.DataFrame(rows).replace("", None)
    found = look(contract, write(rows)).local_only
    for name in ("age", "note", "tenure", "sex", "income", "at"):
        assert found.missing[name] == round(100 * frame[name].isna().mean()), name
    assert found.other == {"home": round(1100 / 37), "sex": round(200 / 37)}


def test_looking_past_filled_in_values_rejects_and_splits_the_same(contract, write):
    rows = users(50)
    for i, row in enumerate(rows):
        row["tenure"] = ("", "99", "x", "4")[i % 4]
        row["job"] = ("clerk", "baker")[i % 2]
    path = write(rows)
    shard, found = read_shard(path, contract), look(contract, path).local_only
    assert (found.train_users, found.holdout_users) == (len(shard.train), len(shard.holdout))
    assert sum(n for _, _, n in found.rejects) == len(shard.rejects) > 0
    assert found.missing["tenure"] == 100  # of the users that are left, each lacks it
    assert all(e.record.values["tenure"] == 2.0 for e in (*shard.train, *shard.holdout))


def test_a_file_without_usable_users_has_counts_too(contract, write):
    found = look(contract, write(users(3, job="baker")))
    assert found.local_only.users == found.local_only.train_users == 0
    assert found.refusals == ("the shard has no usable training user",)
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["local_only"]["users"] == 0
    assert "would NOT take part" in said(found)


def test_the_mapping_is_followed(contract, write):
    rows = [{**row, "AGE_YEARS": "-9", "defaulted": "no"} for row in users(4)]
    mapping = ShardMapping(
        columns={"age": "AGE_YEARS"},
        missing={"age": frozenset({"-9"})},
        missing_numbers={"age": frozenset({-9.0})},
        values={"defaulted": {"no": "0"}},
        constants={"job": "driver"},
    )
    columns = [c for c in COLUMNS if c != "age"] + ["AGE_YEARS"]
    found = look(contract, write(rows, columns), mapping=mapping)
    assert found.local_only.users == 4
    assert (found.local_only.missing["age"], found.local_only.missing["job"]) == (100, 0)
    assert found.local_only.ignored == ()
    for words in ("AGE_YEARS, translated", "always driver"):
        assert words in said(found)


# Nobody's values

SENTINEL = {
    "user": "SENTINELID 4711001",
    "phone": "SENTINEL 138 0013 8001",
    "age": "67.4711003",
    "income": "123.4711004",
    "tenure": "4711005",
    "home": "SENTINELHOME",
    "note": "SENTINELNOTE of jane.4711006@example.com",
    "at": "1947-11-07T04:07:11",
    "orders": '[{"time": "1947-11-08", "value": 4711008.5}]',
    "sex": "SENTINELSEX",
    "secret": "SENTINELSECRET",
    "extra": "SENTINELEXTRA",
    "": "SENTINELNAMELESS",
}
SECRETS = ["SENTINEL", "4711", "0013", "8001", "example.com", "1947", "67.4", "123.4"]


def assert_silent(*texts):
    for text in texts:
        for secret in SECRETS:
            assert secret not in text


def test_planted_values_reach_neither_page_nor_json_nor_repr(
    contract, write, ledger, capfd, caplog
):
    rows = [{**GOOD, **SENTINEL, "user": f"SENTINELID 4711{i}"} for i in range(40)]
    for i, name in enumerate(("age", "income", "job", "at", "orders", "defaulted")):
        rows[i][name] = f"SENTINEL4711 {name}"  # rejected
    columns = [*COLUMNS, "extra", "", "SENTINELNAME@example.com", "4711099", "138 0013 8000"]
    path = write(rows, columns, end="SENTINELSHORT,SENTINELROW\r\n")
    with caplog.at_level("DEBUG"):
        found = look(contract, path, ledger)
        page, plain = said(found), json.dumps(as_json(found))
    assert found.local_only.users == 34
    assert len(found.local_only.rejects) == 7
    assert (found.local_only.ignored, found.local_only.nameless) == (("extra",), 4)
    assert found.local_only.other == {"home": 100, "sex": 100}
    captured = capfd.readouterr()
    outputs = page, plain, repr(found), caplog.text, captured.out, captured.err
    assert_silent(*(text.replace(str(path.parent), "") for text in outputs))  # it has a number


def test_a_file_without_a_header_is_an_error_that_quotes_none_of_it(contract, write):
    rows = [{**GOOD, **SENTINEL} for _ in range(3)]
    path = write(rows, header=False)
    with pytest.raises(ShardError, match="column 'user' is missing") as caught:
        look(contract, path)
    assert_silent(str(caught.value).replace(str(path.parent), ""))


def test_what_is_public_does_not_depend_on_the_shard(contract, write, ledger):
    """One user more, or all others, change counts and remarks alone."""
    one = as_json(look(contract, write(users(40)), ledger))
    more = as_json(look(contract, write(users(41)), ledger))
    others = as_json(look(contract, write(users(900, age="", home="?", job="driver")), ledger))
    assert one["local_only"] != more["local_only"]
    for private in ("local_only", "remarks"):
        for plain in (one, more, others):
            del plain[private]
    assert one == more == others


# What is refused, and what is remarked on


def test_floors_name_what_is_asked_and_what_is_allowed(contract):
    contract = with_budget(contract, epsilon=8.0)
    with pytest.raises(PrivacyError) as caught:
        check_floors(contract, 5, None)
    assert str(caught.value) == "the contract asks for epsilon 8, --max-epsilon is 5"
    with pytest.raises(PrivacyError, match="asks for delta 1e-05, --max-delta is 1e-06"):
        check_floors(contract, None, 1e-6)


def test_a_contract_at_the_floors_or_without_any_is_taken(contract):
    epsilon, delta = contract.privacy.epsilon, contract.privacy.delta
    check_floors(contract, epsilon, delta)
    check_floors(contract, None, None)
    check_floors(contract.without_privacy(), None, None)
    for over in ((math.nextafter(epsilon, 0), None), (None, math.nextafter(delta, 0))):
        with pytest.raises(PrivacyError):
            check_floors(contract, *over)


@pytest.mark.parametrize("floors", [(50, None), (None, 0.9), (math.inf, None), (math.inf, 1.0)])
def test_a_contract_without_a_budget_is_above_every_floor(contract, floors):
    with pytest.raises(PrivacyError, match="has no privacy budget, --max-"):
        check_floors(contract.without_privacy(), *floors)


@pytest.mark.parametrize("floors", [(math.nan, None), (None, math.nan), (-1, None), (0, None)])
def test_a_floor_that_nothing_can_be_below_refuses(contract, floors):
    with pytest.raises(PrivacyError):
        check_floors(contract, *floors)


def test_every_reason_to_stay_out_is_given_at_once(contract, write):
    tight = with_budget(contract, epsilon=0.5)
    found = look(tight, write(users(3, job="baker")), max_epsilon=0.1, max_delta=1e-9)
    assert [reason.split()[:4] for reason in found.refusals] == [
        ["the", "contract", "asks", "for"],
        ["3", "rounds", "of", "2"],
        ["the", "shard", "has", "no"],
    ]


def test_a_contract_without_privacy_is_refused_unless_it_is_allowed(contract, write):
    bare, path = contract.without_privacy(), write(users(10))
    (reason,) = look(bare, path).refusals
    assert "--allow-no-privacy" in reason
    assert look(bare, path, allow_no_privacy=True).refusals == ()
    assert look(bare, path, allow_no_privacy=True, max_epsilon=50.0).refusals != ()


def test_a_used_up_budget_refuses_in_the_ledgers_words(contract, write, ledger):
    path = write(users(300))
    plan = look(contract, path, ledger).plan
    for n in range(100):
        found = look(contract, path, ledger)
        if found.refusals:
            break
        ledger.charge("train", plan.round_event(), contract_digest="another", message_id=str(n),
                      request_digest="", reply=b"", budget_epsilon=4.0, delta=1e-5)  # fmt: skip
    (reason,) = found.refusals
    assert "the privacy budget ends here" in reason
    assert found.ledger.spent.any <= 4.0 < found.ledger.rest_to_come.any
    assert any("before the schedule" in remark for remark in found.remarks)


def test_statistics_that_the_ledger_has_no_room_for_are_refused(federated, write):
    """Where a round would still fit, so that nothing but the statistics is refused."""
    path = write(users(300))
    dear = dataclasses.replace(
        federated, statistics=dataclasses.replace(federated.statistics, noise_multiplier=1.0)
    )
    dear = dataclasses.replace(dear, privacy=dataclasses.replace(dear.privacy, epsilon=9.0))
    plan = look(dear, path).plan
    used = {"budget_epsilon": 50.0, "delta": 1e-5, "request_digest": "", "reply": b""}
    with Ledger.in_memory() as ledger:
        ledger.bind_split(dear.split.salt, dear.split.holdout, dear.record.user)
        assert look(dear, path, ledger).refusals == ()
        ledger.charge("train", plan.statistics_event(), contract_digest="another", message_id="1",
                      **used)  # fmt: skip
        (refusal,) = look(dear, path, ledger).refusals
        assert "the privacy budget ends here" in refusal
        # What this very contract has had of them is not asked for again.
        begun = Ledger.in_memory()
        begun.bind_split(dear.split.salt, dear.split.holdout, dear.record.user)
        begun.charge("train", plan.statistics_event(), contract_digest=dear.digest,
                     message_id="1", **used)  # fmt: skip
        assert look(dear, path, begun).refusals == ()


def test_a_finished_contract_is_not_refused_for_rounds_that_will_not_come(contract, write, ledger):
    path = write(users(300))
    plan = look(contract, path).plan
    exact = with_budget(contract, epsilon=math.ceil(plan.train_epsilon() * 1000) / 1000)
    for n in range(plan.rounds):
        ledger.charge("train", plan.round_event(), contract_digest=exact.digest,
                      message_id=str(n), request_digest="", reply=b"",
                      budget_epsilon=exact.privacy.epsilon, delta=1e-5)  # fmt: skip
    found = look(exact, path, ledger)
    assert (found.refusals, found.remarks) == ((), ())
    assert found.ledger.all_to_come.any > exact.privacy.epsilon


@pytest.mark.parametrize(
    ("stands_for", "remarked"), [(60, False), (59, True), (240, False), (241, True), (120, False)]
)
def test_a_class_more_than_a_factor_of_two_off_is_remarked_on_and_taken(
    contract, write, ledger, stands_for, remarked
):
    contract = with_budget(contract, size_classes=(("only", stands_for),))
    names = [f"u{i}" for i in range(400)]
    salt, fraction = contract.split.salt, contract.split.holdout
    train = [name for name in names if not is_holdout(salt, fraction, name)][:120]
    held = [name for name in names if is_holdout(salt, fraction, name)][:5]
    rows = [{**GOOD, "user": name} for name in (*train, *held)]
    found = look(contract, write(rows), ledger, "only")
    assert any("factor of 2" in remark for remark in found.remarks) is remarked
    assert found.refusals == ()


def test_columns_that_look_wrong_are_remarked_on(contract, write, ledger):
    rows = users(300, age="", home="owned")
    remarks = " ".join(look(contract, write(rows), ledger).remarks)
    assert "field age: hardly any user has a value" in remarks
    assert "field home: 100% of users have a code that the contract does not know" in remarks
    assert look(contract, write(users(300)), ledger).remarks == ()


def test_a_ledger_that_is_not_there_or_had_another_split_is_remarked_on(contract, write):
    path = write(users(300))
    (remark,) = look(contract, path).remarks
    assert "no ledger" in remark
    with Ledger.in_memory() as ledger:
        ledger.bind_split("another salt", 0.1)
        (remark,) = look(contract, path, ledger).remarks
    assert "adds up" in remark


def test_no_holdout_user_is_remarked_on(contract, write, ledger):
    whole = dataclasses.replace(contract, split=dataclasses.replace(contract.split, holdout=0.0))
    (remark, *_) = look(whole, write(users(300)), ledger).remarks
    assert "no hold-out user" in remark


def test_an_unknown_size_class_is_the_contracts_error_before_the_shard_is_read(contract, tmp_path):
    with pytest.raises(ContractError, match="size class 'huge'"):
        look(contract, tmp_path / "none.csv", size_class="huge")


# What it takes, and real data


def test_looking_changes_neither_ledger_nor_shard(contract, write, tmp_path):
    path = write(users(30))
    before = path.read_bytes()
    with Ledger.create(tmp_path / "own.ledger") as ledger:
        head = ledger.head
        look(contract, path, ledger)
        assert ledger.head == head
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"shard.csv", "own.ledger"}


def test_no_model_and_no_network_library_is_loaded(contract_text, write, tmp_path):
    path = write(users(30))
    (tmp_path / "federation.toml").write_text(contract_text)
    script = (
        "import sys; from pathlib import Path\n"
        "from credit_common.contract import load_contract\n"
        "from credit_client.preflight import inspect\n"
        "from credit_client.preflight_text import as_json, show\n"
        "contract = load_contract(sys.argv[1])\n"
        "found = inspect(contract, Path(sys.argv[2]), size_class='small', ledger=None)\n"
        "show(found); as_json(found)\n"
        "heavy = {'torch', 'flwr', 'transformers', 'opacus', 'peft', 'grpc', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "federation.toml"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "would take part" in done.stdout


def test_a_multiclass_contract_without_privacy(contract, task, write):
    changed = dataclasses.replace(contract.task, **task["multiclass"])
    bare = dataclasses.replace(contract, task=changed).without_privacy()
    rows = [{**row, "defaulted": "abc"[i % 3]} for i, row in enumerate(users(90))]
    found = look(bare, write(rows), allow_no_privacy=True)
    assert (found.local_only.users, found.refusals) == (90, ())
    assert found.schedule.any == found.replace_one == math.inf
    assert as_json(found)["schedule"] == {"train": None, "holdout": None, "any": None}
    told = " ".join(said(found).split())
    for words in ("wrong or right", "head: 2 arrays", "3 scores", "NONE", "NO budget"):
        assert words in told or words in str(found.sends)


def test_the_packaged_contract_and_data_of_german(tmp_path):
    contract = load_contract(contract_path("german"))
    path: Path = min(packaged_shards("german", 3).values())
    frame = pd.read_parquet(path)
    with Ledger.create(tmp_path / "own.ledger") as ledger:
        found = look(contract, path, ledger, "large", max_epsilon=8, max_delta=1e-5)
    assert found.refusals == ()
    counts = found.local_only
    assert counts.users == counts.rows == len(frame)
    assert counts.train_users + counts.holdout_users == len(frame)
    for name, share in counts.missing.items():
        assert share == round(100 * frame[name].isna().mean()), name
    assert (counts.rejects, counts.ignored, counts.nameless) == ((), (), 0)
    assert {s.name for s in found.fields} == set(frame) - {"client_id", "creditability", "holder"}
    assert found.schedule.any <= 8
    assert frame["client_id"].str.startswith("german-0").all()
    assert "german-0" not in said(found) + json.dumps(as_json(found))

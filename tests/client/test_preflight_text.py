import csv
import dataclasses
import io
import json
import math
import re

import pytest

from credit_client.chain import canonical
from credit_client.ledger import Ledger
from credit_client.mapping import ShardMapping
from credit_client.preflight import inspect
from credit_client.preflight_text import as_json, show
from credit_common.events import Histogram
from credit_common.fields import IdentifierField, NumberField

ROW = {
    "user": "u", "age": "30", "income": "20", "tenure": "3", "home": "P", "job": "clerk",
    "note": "pays late", "at": "2024-01-05", "orders": "[]", "sex": "f", "defaulted": "1",
}  # fmt: skip
BY_KIND = {"binary": "1", "multiclass": "a", "regression": "7"}


@pytest.fixture
def look(contract, tmp_path):
    """A preflight of forty users, with keys of the contract's parts and the columns changed."""

    def make(contract=contract, *, label="1", columns=(), n=40, before=None, **options):
        names = [*ROW, *columns]
        path = tmp_path / "shard.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            row = {**ROW, "defaulted": label}
            writer.writerows(
                [f"u{i}" if name == "user" else row.get(name, "9") for name in names]
                for i in range(n)
            )
        with Ledger.in_memory() as ledger:
            if before is not None:
                before(ledger)
            return inspect(contract, path, size_class="small", ledger=ledger, **options)

    return make


def page(preflight):
    out = io.StringIO()
    show(preflight, out)
    return out.getvalue()


def lines_of(text, title):
    """The lines under a heading."""
    section = next(part for part in text.split("\n\n") if part.startswith(title))
    return section.splitlines()[1:]


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("kind", BY_KIND)
def test_the_page_fits_a_hundred_columns_whatever_the_task(contract, task, look, kind, private):
    changed = dataclasses.replace(contract.task, **task[kind])
    changed = dataclasses.replace(contract, task=changed)
    if not private:
        changed = changed.without_privacy()
    found = look(changed, label=BY_KIND[kind])
    assert found.local_only.users == 40
    text = page(found)
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()  # of names in ASCII
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("private", [True, False])
def test_statistics_are_told_where_the_contract_asks_for_them(contract, federated, look, private):
    asking, plain = (c if private else c.without_privacy() for c in (federated, contract))
    text = page(look(asking))
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()
    assert "241 counts of training users by value" in flat(text)
    close = "give or take 8 users a cell" if private else "exactly"
    assert f"From the statistics answer it can tell, {close}, how the values" in flat(text)
    assert f"Protection of each statistics answer: {'Gauss' if private else 'NONE'}" in flat(text)
    assert "statistics answer" not in page(look(plain))


def test_groups_are_told_where_the_contract_counts_them(contract, grouped, look):
    text = page(look(grouped))
    assert max(map(len, text.splitlines())) <= 100
    assert "from the last one also how those of each code of sex are decided" in flat(text)
    assert "one for each of 1 protected field (sensitivity sqrt(2))" in flat(text)
    assert "code of sex" not in page(look(contract))
    (row,) = [line for line in text.splitlines() if line.split()[:2] == ["sex", "protected"]]
    assert row.endswith("counted")
    assert "counted: never given to the model; the last evaluation counts users by it" in flat(text)
    # Two tables tell the number of held-out users: 100 and 24 cells of noise 2.
    assert f"give or take {2 / math.sqrt(1 / 100 + 1 / 24):.0f} (one standard" in flat(text)
    assert "counted: never" not in page(look(contract))


def test_names_cannot_break_the_page_or_steer_the_terminal(contract, look):
    odd = "x\x1b[31mred\u202e\n" + "long_" * 40
    fields = (*contract.fields, NumberField(name=odd, range=(0, 9), edges=(1,)),
              IdentifierField(name="tax_number_" * 12))  # fmt: skip
    changed = dataclasses.replace(contract, fields=fields)
    columns = ["OWN_" * 30, "\x1b]0;title\x07", "two\nlines", "fine"]
    mapping = ShardMapping(columns={odd: "OWN_" * 30})
    found = look(changed, columns=columns, mapping=mapping)
    text = page(found)
    assert max(map(len, text.splitlines())) <= 100
    assert text.replace("\n", "").isprintable()
    assert found.local_only.ignored == ("fine",)
    assert found.local_only.nameless == 2
    assert "fine, 2 whose name cannot be shown" in text


def test_long_names_go_on_below_themselves_and_lose_nothing(contract, look):
    name = "".join(f"part{i}of_a_name_" for i in range(9))
    fields = (*contract.fields, NumberField(name=name, range=(0, 9), edges=(1,)))
    text = page(look(dataclasses.replace(contract, fields=fields), columns=[name]))
    rows = lines_of(text, "WHAT IS READ")
    start = next(i for i, row in enumerate(rows) if row.strip().startswith("part0"))
    end = next(i for i, row in enumerate(rows) if row.strip().startswith("missing:"))
    assert "".join(row.split()[0] for row in rows[start:end]) == name


def test_columns_of_the_table_of_fields_are_aligned(look):
    head, *rows = lines_of(page(look()), "WHAT IS READ")
    for title in ("kind", "your column", "used for"):
        place = head.index(title)
        table = rows[: len(look().fields) + 2]
        assert all(row[place - 1] == " " and row[place] != " " for row in table), title


def test_the_page_tells_what_the_contract_and_the_shard_have(contract, look):
    found = look()
    text = page(found)
    for fact in (contract.digest, "stands for 300 training users", "small", "defaulted (binary)"):
        assert fact in text
    counts = found.local_only
    assert f"{counts.train_users} to train with and {counts.holdout_users} held out" in text
    table = lines_of(text, "WHAT IS READ")
    told = {row.split()[0] for row in table if row.startswith("  ")}
    assert {source.name for source in found.fields} | {"user", "defaulted"} <= told
    unseen = lines_of(text, "WHAT THE MODEL NEVER GETS")
    assert [line.split(maxsplit=1) for line in unseen[:4]] == [
        ["identifier", "user, phone"],
        ["protected", "sex"],
        ["dropped", "secret"],
        ["undeclared", "none"],
    ]


def test_counts_stand_under_headings_that_say_where_they_stay(look):
    text = page(look())
    for title in ("YOUR SHARD", "WHAT IS READ"):
        assert "for your eyes only" in next(s for s in text.splitlines() if s.startswith(title))


def test_rejected_rows_are_told_by_field_and_reason(look):
    text = page(look(label="maybe"))
    (row,) = [line for line in text.splitlines() if "label outside its set" in line]
    assert row.split() == ["40", "defaulted", "label", "outside", "its", "set"]


def test_refusals_and_remarks_stand_at_the_top(look):
    found = look(max_epsilon=1.0)
    result = flat(" ".join(lines_of(page(found), "RESULT")))
    assert result.startswith("This client would NOT take part. - the contract asks for epsilon 4")
    for words in (*found.refusals, *found.remarks):
        assert flat(words) in result
    assert lines_of(page(look()), "RESULT")[0].strip() == "This client would take part."


def test_every_message_and_its_protection_are_told(contract, look):
    found = look()
    told = flat(page(found))
    for sending in found.sends:
        assert sending.what in told
        if sending.times is not None:
            assert f"Protection of each {sending.what}: {sending.protection}." in told
    rows = lines_of(page(found), "ALL THAT LEAVES")
    (row,) = [row for row in rows if row.strip().startswith("training answer")]
    sizes = [sending.bytes for sending in found.sends if sending.what == "training answer"]
    assert row.split()[4:6] == [str(found.plan.rounds), f"{sizes[0]:,}"]
    hub = {"backbone": "someone/bert-on-a-hub", "backbone_sha256": "0" * 64}
    model = dataclasses.replace(contract.model, **hub)
    elsewhere = look(dataclasses.replace(contract, model=model))
    assert "?" in next(
        row for row in lines_of(page(elsewhere), "ALL THAT LEAVES") if "each round" in row
    )


def test_free_text_brings_a_word_on_what_masking_misses(contract, look):
    assert "Names and addresses are not." in page(look())
    fields = tuple(f for f in contract.fields if f.kind != "text")
    assert "Names and addresses" not in page(look(dataclasses.replace(contract, fields=fields)))


def test_the_noise_of_the_counts_is_that_of_the_hold_outs_size(look):
    found = look()
    cells = 2 * found.contract.evaluation.bins
    error = math.sqrt(cells * found.plan.evaluation_noise_multiplier**2)
    assert f"give or take {error:.0f}" in page(found)


def epsilons(text):
    """Figures of the table of epsilons by its first column."""
    rows = lines_of(text, "WHAT CAN BE TOLD")
    found = {}
    for row in rows:
        if match := re.fullmatch(r"  (\S.*?)((?:\s{2,}(?:\d+\.\d\d))+)", row):
            found[match[1]] = [float(x) for x in match[2].split()]
    return found


def test_epsilons_are_rounded_up_and_stand_beside_the_budget(look):
    found = look()
    table = epsilons(page(found))
    schedule = found.schedule
    exact = [schedule.train, schedule.holdout, schedule.any]
    for shown, true in zip(table["the contract's whole schedule"], exact, strict=True):
        assert true <= shown < true + 0.01
    assert table["your ledger so far, over all contracts"] == [0, 0, 0]
    assert table["budget: past it the ledger refuses"] == [4.0]
    text = flat(page(found))
    for words in ("adding or removing one user", "delta = 1e-05", "privacy loss distributions"):
        assert words in text
    shown = float(re.search(r"whole schedule has (\d+\.\d\d)", text)[1])
    assert found.replace_one <= shown < found.replace_one + 0.01


def test_rounds_already_charged_have_a_line_of_their_own(look):
    found = look()
    assert not any("the other" in name for name in epsilons(page(found)))
    rest = dataclasses.replace(found.ledger.rest_to_come, any=1.234)
    ledger = dataclasses.replace(found.ledger, rounds=2, evaluations=0, rest_to_come=rest)
    table = epsilons(page(dataclasses.replace(found, ledger=ledger)))
    assert table["your ledger, if the other 1 rounds and 1 evaluations come"][2] == 1.24
    assert "your ledger, if all rounds were still to come" in table


def lost(ledger):
    """Something was charged, more was lost, and a person signed for that."""
    ledger.charge(
        "holdout",
        Histogram(noise_multiplier=2.0),
        contract_digest="c",
        message_id="m",
        request_digest="r",
        reply=b"",
        budget_epsilon=4.0,
        delta=1e-5,
    )
    ledger.override(canonical({"counter": 9, "reason": "the disk broke"}), 9)


def test_after_lost_entries_no_epsilon_of_the_ledger_is_told(look):
    whole, found = look(), look(before=lost)
    assert (whole.ledger.overrides, found.ledger.overrides) == (0, 1)
    rows = [row for row in lines_of(page(found), "WHAT CAN BE TOLD") if "your ledger" in row]
    assert len(rows) == 2
    assert all(row.split()[-3:] == ["unknown"] * 3 for row in rows)
    assert max(map(len, page(found).splitlines())) <= 100
    told = as_json(found)["ledger"]
    assert (told["spent"], told["all_to_come"], told["rest_to_come"]) == (None, None, None)
    assert told["overrides"] == 1
    (remark,) = set(found.remarks) - set(whole.remarks) - added(found)
    assert "entries of the ledger were lost" in remark
    assert "unknown" not in page(whole)


def added(preflight):
    """Remarks on accounts that add up, which is another matter."""
    return {remark for remark in preflight.remarks if "adds up" in remark}


def test_a_page_goes_to_stdout_unless_told_otherwise(look, capsys):
    found = look()
    show(found)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (page(found), "")


KEYS = {
    "format", "federation", "contract_digest", "plan", "size_class", "class_users", "user_column",
    "label_column", "fields", "local_only", "sends", "schedule", "replace_one", "ledger",
    "refusals", "remarks", "not_for_the_model", "never_sent",
}  # fmt: skip
LOCAL = {
    "file", "rows", "users", "train_users", "holdout_users", "duplicates", "rejects", "missing",
    "other", "ignored", "nameless",
}  # fmt: skip


@pytest.mark.parametrize("private", [True, False])
def test_json_has_its_keys_and_nothing_that_json_lacks(contract, look, private):
    found = look(contract if private else contract.without_privacy())
    plain = as_json(found)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == KEYS
    assert set(plain["local_only"]) == LOCAL
    assert (plain["format"], plain["contract_digest"]) == (1, found.contract.digest)
    assert plain["schedule"]["any"] == (found.schedule.any if private else None)
    assert plain["ledger"]["spent"] == {"train": 0.0, "holdout": 0.0, "any": 0.0}
    assert [s["what"] for s in plain["sends"]] == [s.what for s in found.sends]
    assert plain["not_for_the_model"] == {
        "identifier": ["user", "phone"],
        "protected": ["sex"],
        "dropped": ["secret"],
    }
    assert plain["local_only"]["train_users"] == found.local_only.train_users


def test_json_without_a_ledger_says_null(look):
    assert as_json(dataclasses.replace(look(), ledger=None))["ledger"] is None

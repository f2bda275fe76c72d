import dataclasses

import numpy as np
import pytest

from credit_common.contract import parse_contract


@pytest.fixture(scope="session")
def subject_of(federation_file, model_for, records):
    """What an audit looks at, on the tiny BERT: 60 users, four steps and one layer unless told."""
    from credit_client.training.examples import Examples
    from credit_common.privacy import mechanism_plan
    from credit_simulations.audited import Subject

    def make(users=60, clip_norm=1.0, layers=1, **schedule):
        text = federation_file(model={"layers": layers}, private=False)
        plain = parse_contract(text)
        classes = (("audited", users),)
        privacy = dataclasses.replace(plain.privacy, size_classes=classes, clip_norm=clip_norm)
        contract = dataclasses.replace(plain, privacy=privacy)
        model = model_for(contract)
        plan = dataclasses.replace(
            mechanism_plan(contract, "audited"),
            **{"rounds": 2, "steps": 2, "sampling_rate": 0.5, **schedule},
        )
        expected = plan.sampling_rate * users
        plan = dataclasses.replace(plan, expected_batch_size=expected)
        return Subject(model=model, users=Examples(model, contract, records(users)), schedule=plan)

    return make


@pytest.fixture
def everyone():
    """Members and no canary of a subject."""
    from credit_simulations.audited import Cohort

    def make(subject):
        nobody = np.zeros(0, np.intp)
        return Cohort(subject.users, np.arange(len(subject.users)), nobody)

    return make

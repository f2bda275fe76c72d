"""Contracts that come with this project, and shards of the data sets that they are about."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from credit_common.contract import Contract, load_contract
from credit_common.errors import ContractError
from credit_common.fetch import cache_folder
from credit_simulations.data import DATA_SETS, contract_path, prepare
from credit_simulations.partition import biggest, write_shards


def packaged_contract(contract: Contract | str | Path) -> Contract:
    """A contract by itself, by the path of its file, or by the name of a packaged one."""
    if isinstance(contract, Contract):
        return contract
    if str(contract) in DATA_SETS:
        return load_contract(contract_path(str(contract)))
    return load_contract(contract)


def packaged_shards(name: str, holders: int) -> Mapping[str, Path]:
    """Shards of the biggest natural holders of a packaged data set, one Parquet file each.

    Raises:
        ContractError: If no data set of that name is packaged.
        FetchError: If it cannot be fetched.
    """
    if name not in DATA_SETS:
        raise ContractError(
            f"federation.name = {name!r}: no data set of that name is packaged, so --shards must "
            f"name the holders' files; packaged: {', '.join(DATA_SETS)}"
        )
    frame = pd.read_parquet(prepare(name))
    return write_shards(biggest(frame, "holder", holders), cache_folder() / "shards" / name)

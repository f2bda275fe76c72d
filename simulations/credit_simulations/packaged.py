"""Contracts that come with this project, and shards of the data sets that they are about."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from credit_common.contract import Contract, load_contract
from credit_common.errors import ContractError
from credit_common.fetch import cache_folder
from credit_simulations.data import DATA_SETS, contract_path, prepare
from credit_simulations.partition import biggest, by_column, write_shards


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
    parts = biggest(_frame(name), "holder", holders)
    return write_shards(parts, cache_folder() / "shards" / name)


def newcomer_shards(name: str, holders: int, min_rows: int) -> Mapping[str, Path]:
    """Shards of the other natural holders of at least `min_rows` rows, which take no part.

    Raises:
        ContractError: If no data set of that name is packaged.
        FetchError: If it cannot be fetched.
    """
    frame = _frame(name)
    taking_part = biggest(frame, "holder", holders)
    others = {
        shop: rows
        for shop, rows in by_column(frame, "holder").items()
        if len(rows) >= min_rows and shop not in taking_part
    }
    return write_shards(others, cache_folder() / "shards" / name)


def _frame(name: str) -> pd.DataFrame:
    if name not in DATA_SETS:
        raise ContractError(
            f"federation.name = {name!r}: no data set of that name is packaged, so --shards must "
            f"name the holders' files; packaged: {', '.join(DATA_SETS)}"
        )
    return pd.read_parquet(prepare(name))

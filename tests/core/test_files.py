"""Files that are read back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import Refused
from tests.support.splits import good, table


@pytest.mark.parametrize("damage", ["truncated", "not UTF-8", "missing"])
def test_a_parquet_file_that_cannot_be_read_is_refused_by_file_and_remedy(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "train.parquet"
    if damage == "not UTF-8":
        pq.write_table(
            pa.table({"question": pa.array([b"\xff"], pa.binary()).view(pa.string())}), path
        )
    elif damage == "truncated":
        pq.write_table(table(good()["train"]), path)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        Refused,
        match=r"train\.parquet(, from row 0)?: expected a whole Parquet file with UTF-8 text; "
        r"found .*dvc checkout",
    ):
        files.read_rows(path)

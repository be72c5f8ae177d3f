"""Rows from where a dataset lies: a reasoning-gym generator, data/raw/ or the hub at a commit.

Every source yields (place, row), as regrpo.inputs.readers has them.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from regrpo.core import files
from regrpo.core.answers.reasoning_gym import create_dataset
from regrpo.core.errors import parsing
from regrpo.core.hub import file_under, hub_failure, require_commit
from regrpo.core.settings import Section
from regrpo.inputs.readers import Rows, local_rows

RAW_DATA = Path("data/raw")


class ReasoningGym(Section):
    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    config: dict[str, Any] = Field(default={})
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        return {"train": self.rows(seed)}

    def rows(self, seed: int) -> Rows:
        """Row i draws from seed + i, so two seeds nearer than `size` share rows.

        Each has its task and configuration besides.
        """
        dataset = create_dataset(self.task, seed, self.size, self.config)
        own = {"task": self.task, "config": self.config}
        for index, row in enumerate(dataset):
            yield f"reasoning-gym {self.task}, row {index}", row | own

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"reasoning-gym task {self.task}",
            "revision": f"reasoning-gym {metadata.version('reasoning-gym')}",
        }


class Local(Section):
    """Files under data/raw/."""

    kind: Literal["local"]
    train: str
    eval: str | None = None
    license: str

    def _names(self) -> dict[str, str]:
        names = {"train": self.train}
        if self.eval:
            names["eval"] = self.eval
        return names

    def parts(self, seed: int) -> dict[str, Rows]:
        return {
            part: local_rows(file_under(RAW_DATA, name, f"prepare.source.{part}"))
            for part, name in self._names().items()
        }

    def describe(self) -> dict[str, Any]:
        digests = {name: files.sha256(RAW_DATA / name) for name in self._names().values()}
        return {
            "source": " and ".join(f"{RAW_DATA}/{name}" for name in digests),
            "revision": files.sha256_json(digests),
            "files": digests,
        }


class Hub(Section):
    """Splits of a hub dataset at a commit.

    `data_dir` is the folder of plain files that holds the splits: how a Parquet conversion
    (refs/convert/parquet) lays out a configuration.
    """

    kind: Literal["hub"]
    repo: str
    config: str | None = None
    data_dir: str | None = None
    revision: str
    train_split: str = "train"
    eval_split: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Rows]:
        splits = {"train": self.train_split}
        if self.eval_split:
            splits["eval"] = self.eval_split
        return {part: self.rows(split) for part, split in splits.items()}

    def rows(self, split: str) -> Rows:
        """Rows of a split. Raises CannotCheck if it cannot be loaded.

        No dataset script is ever run: `datasets` knows none any more.
        """
        from datasets import load_dataset

        require_commit(self.repo, self.revision, "dataset", "prepare.source.revision")
        try:
            dataset = load_dataset(
                self.repo, self.config, data_dir=self.data_dir, revision=self.revision, split=split
            )
        except Exception as error:  # the hub's client raises a different class for each failure
            where = "prepare.source"
            instead = (
                f"copy the files of split {split!r} to {RAW_DATA}/ and use source kind `local`"
            )
            raise hub_failure(error, self.repo, self.revision, "dataset", where, instead) from error
        place = f"{self.repo} ({split})"
        with parsing(place, "rows that `datasets` can read", "Take another commit."):
            for index, row in enumerate(dataset):
                yield f"{place}, row {index}", row

    def describe(self) -> dict[str, Any]:
        return {
            "source": f"hub dataset {self.repo}",
            "repo": self.repo,
            "config": self.config or self.data_dir,
            "revision": self.revision,
        }

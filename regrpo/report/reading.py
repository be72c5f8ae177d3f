"""A place's files, read as far as they can be: what cannot is a problem in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from regrpo.core.errors import RegrpoError
from regrpo.core.profiles import parse_yaml
from regrpo.records.find import Place

T = TypeVar("T")
Json = dict[str, Any]


class Reader:
    """Reads one place's files and collects what is wrong with them in `problems`.

    `lock` is dvc.lock's content, `declared` are dvc.yaml's stages; both empty where unreadable.
    """

    def __init__(self, place: Place, root: Path) -> None:
        self.snapshot = place.snapshot
        self.root = root
        self.problems: list[str] = []
        self.lock: Json = self.guarded("dvc.lock", self.snapshot.lock) or {"stages": {}}
        self.declared: dict[str, Json] = {}
        content = self.guarded("dvc.yaml", partial(self.yaml, "dvc.yaml")) or {}
        for name, entry in (content.get("stages") or {}).items():
            if isinstance(entry, dict):
                self.declared[name] = entry

    @property
    def is_workspace(self) -> bool:
        return self.snapshot.revision is None

    def guarded(self, where: str, read: Callable[[], T]) -> T | None:
        """What `read` returns. None, with a problem noted, if it cannot read the content."""
        try:
            return read()
        except RegrpoError as error:
            problem = f"{error.where}: expected {error.expected}; found {error.found}"
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            problem = f"{where}: {field}: {first['msg']}"
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            words = " ".join(str(error).split())[:160]
            problem = f"{where}: {words or type(error).__name__}"
        self.problems.append(problem)
        return None

    def yaml(self, path: str) -> Json:
        """A YAML file's mapping; empty if there is none. Raises TypeError for another type."""
        content = parse_yaml(self.snapshot.read(path) or b"{}", path)
        if not isinstance(content, dict):
            raise TypeError(f"expected a mapping, found {type(content).__name__}")
        return content

    def json(self, path: str, parse: Callable[[Any], T]) -> T | None:
        """A JSON file's content, parsed. Returns None if it is not there or not of that form."""
        data = self.snapshot.read(path)
        if data is None:
            return None
        return self.guarded(path, lambda: parse(json.loads(data)))

    def table(self, path: str, columns: Sequence[str], **equal: str) -> list[Json]:
        """Rows of a Parquet output: these columns, where others have these values."""
        return self.guarded(path, lambda: self._rows(path, columns, equal)) or []

    def _rows(self, path: str, columns: Sequence[str], equal: dict[str, str]) -> list[Json]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = self.snapshot.output(path)
        if data is None:
            return []
        filters = [(name, "=", value) for name, value in equal.items()]
        table = pq.read_table(pa.BufferReader(data), columns=list(columns), filters=filters or None)
        rows: list[Json] = table.to_pylist()
        return rows

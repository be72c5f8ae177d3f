"""A place's files, read as far as they can be: what cannot is a problem in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from regrpo.core.errors import RegrpoError
from regrpo.core.profiles import parse_yaml
from regrpo.evaluate.results import read_table
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

    def parse(self, path: str, parse: Callable[[bytes], T]) -> T | None:
        """What a file holds, of the bytes here or (of an output) in DVC's cache.

        Returns None if it is not there, or not of that form.
        """
        return self.guarded(path, lambda: self._parse(path, parse))

    def _parse(self, path: str, parse: Callable[[bytes], T]) -> T | None:
        data = self.snapshot.output(path) if self.lock["stages"] else self.snapshot.read(path)
        return None if data is None else parse(data)

    def table(self, path: str, columns: Sequence[str], **equal: str) -> list[Json]:
        """Rows of a Parquet output: these columns, where others have these values."""
        return self.parse(path, lambda data: read_table(data, columns, **equal).to_pylist()) or []

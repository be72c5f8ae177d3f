"""MLflow's model registry, as `regrpo promote` reads and writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.tracking.reader import Reader


class Registry(Reader):
    """Registered models; a version is a mapping with `version` and `tags`."""

    def logged_model(self, record: Json, path: str) -> str | None:
        """The id of the logged model that stands for a stage's output `path`.

        Returns None if the store has none.
        """
        made = f"tags.`regrpo.run` = '{record['run']}' AND tags.`regrpo.path` = '{path}'"
        found = self.client.search_logged_models(self.experiments(), made)
        return str(found[0].model_id) if found else None

    def row(self, pipeline_key: str) -> str | None:
        """The id of the newest row of a whole pipeline. Returns None if there is none."""
        found = self.tagged(regrpo__pipeline_key=pipeline_key, regrpo__kind="pipeline")
        return str(found[0]["id"]) if found else None

    def holder(self, name: str, alias: str) -> Json | None:
        """The version of a registered model that holds an alias. Returns None if none does."""
        version = self._aliases(name).get(alias)
        if version is None:
            return None
        return _plain(self.client.get_model_version(name, version))

    def version_of(self, name: str, pipeline_key: str) -> Json | None:
        """The version that a pipeline was registered as. Returns None if it was not."""
        found = self.client.search_model_versions(f"name = '{name}'", max_results=1000)
        ours = [one for one in found if one.tags.get("regrpo.pipeline_key") == pipeline_key]
        return _plain(ours[-1]) if ours else None

    def _aliases(self, name: str) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: str(version) for alias, version in aliases.items()}

    def register(self, name: str, model_id: str, tags: Mapping[str, str]) -> str:
        """A new version that points to a logged model (and it to the version).

        Returns its number. Raises CannotCheck for a name that a prompt has: MLflow keeps both in
        one table, and would make the model a version of the prompt.
        """
        import mlflow

        if self.client.get_prompt(name) is not None:
            raise CannotCheck(
                "MLflow's registry",
                expected=f"no prompt called {name}, as a model of that name is to be registered",
                found="one",
                remedy="Give another model_card.model_name, or delete the prompt.",
            )
        made = mlflow.register_model(f"models:/{model_id}", name, None, tags=dict(tags))
        return str(made.version)

    def describe(self, name: str, version: str, tags: Mapping[str, str], description: str) -> None:
        """Give a version these tags and this description (Markdown)."""
        for key, value in tags.items():
            self.client.set_model_version_tag(name, version, key, value)
        self.client.update_model_version(name, version, description)

    def give_alias(self, name: str, version: str, alias: str) -> None:
        """Move an alias to a version; a champion is no candidate any more."""
        self.client.set_registered_model_alias(name, alias, version)
        if alias == "champion" and self._aliases(name).get("candidate") == version:
            self.client.delete_registered_model_alias(name, "candidate")

    def add_release(
        self, name: str, pipeline_key: str, tags: Mapping[str, str], hashes: Path
    ) -> bool:
        """Tag a pipeline's version and its row with a release, which gets the alias `released`.

        `hashes` lists the release's files; the row keeps it as artifact. Returns whether the
        pipeline has a version.
        """
        name, row = registered_name(name), self.row(pipeline_key)
        if row is not None:
            for key, value in tags.items():
                self.client.set_tag(row, key, value)
            self.client.log_artifact(row, hashes, "release")
        version = self.version_of(name, pipeline_key)
        if version is None:
            return False
        for key, value in tags.items():
            self.client.set_model_version_tag(name, version["version"], key, value)
        self.client.set_registered_model_alias(name, "released", version["version"])
        return True


def registered_name(model_name: str) -> str:
    """A model's name in the registry: MLflow takes neither / nor : in it."""
    return re.sub("[/:]", "-", model_name)


def _plain(version: Any) -> Json:
    return {"version": str(version.version), "tags": dict(version.tags)}

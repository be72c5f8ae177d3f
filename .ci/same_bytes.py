"""Fail if a deterministic output differs in hash from the committed dvc.lock.

That holds on the processor it was made on. Varying by law: run.json, and the card's marked block;
reports/model_card/metrics.json has the hash of the rest of it.
"""

import json
import subprocess
import sys
from pathlib import Path

from regrpo.core.hardware import cpu_model
from regrpo.core.profiles import read_yaml

VARYING = ("run.json", "reports/model_card/README.md")


def committed(path: str) -> str:
    return subprocess.run(  # noqa: S603  (no shell, and the command is ours)
        ["git", "show", f"HEAD:{path}"],  # noqa: S607  (git is the user's, from PATH)
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def hashes(lock: dict) -> dict[str, str]:
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    return {out["path"]: out["md5"] for out in outs if not out["path"].endswith(VARYING)}


def main() -> int:
    then = json.loads(committed("reports/grpo/run.json"))[0]["environment"]
    if then["cpu"] != cpu_model():
        print(
            f"same bytes: not compared: dvc.lock was made on {then['cpu']}, this is {cpu_model()}"
        )
        return 0
    Path(".regrpo").mkdir(exist_ok=True)
    before_file = Path(".regrpo/committed.lock.yaml")
    before_file.write_text(committed("dvc.lock"))
    before, after = hashes(read_yaml(before_file)), hashes(read_yaml(Path("dvc.lock")))
    different = sorted(path for path in before | after if before.get(path) != after.get(path))
    for path in different:
        print(
            f"same bytes: expected the bytes of the committed dvc.lock; found others: {path}",
            file=sys.stderr,
        )
    print(
        f"same bytes: {len(after) - len(different)} of {len(after)} outputs "
        "identical to the committed dvc.lock"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())

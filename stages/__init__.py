"""One file = one DVC stage = one params section = reports/<stage>/, by one name throughout.

eval_tasks/   our lm-eval tasks, controls among them
templates/    the card's Markdown and the gate's page
"""

import importlib.util
import os
import sys

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each trainer otherwise
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# transformers' own switch: TRL would import mlflow, five seconds for nothing (report_to: none).
os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "TRUE")

if importlib.util.find_spec("pydantic") is None or importlib.util.find_spec("ruamel") is None:
    # DVC starts stages with the `python` of PATH, which need not be the project's.
    sys.exit(
        f"regrpo: expected the project's environment; found {sys.executable}, which lacks "
        "its packages. Run `make install`, then `source .venv/bin/activate`, and start dvc again "
        "(or use `make repro`)."
    )

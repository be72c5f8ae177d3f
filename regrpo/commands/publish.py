"""regrpo publish: a released folder as one commit on the Hugging Face hub, or a dry run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from regrpo.core.text import count, memory, one_line
from regrpo.release.publish import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `regrpo release` made")
    parser.add_argument(
        "--repo-id", required=True, metavar="OWNER/NAME", help="the model repository on the hub"
    )
    parser.add_argument(
        "--yes", action="store_true", help="upload it; without, nothing is sent anywhere"
    )
    parser.add_argument(
        "--private", action="store_true", help="if the repository has to be made, make it private"
    )
    parser.add_argument(
        "--pubkey", type=Path, metavar="PEM", help="the public key that its signature must be of"
    )
    parser.add_argument("--no-mlflow", action="store_true", help="tell MLflow nothing of it")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = (
        "The login is huggingface_hub's: `hf auth login`, or HF_TOKEN. "
        "Exit code 1: the folder is not whole, or the hub refuses name, login, rights or metadata; "
        "2: no way to the hub."
    )


def run(args: argparse.Namespace) -> int:
    result = publish(
        args.folder,
        args.repo_id,
        public_key=args.pubkey,
        send=args.yes,
        private=args.private,
        mlflow=not args.no_mlflow,
    )
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(f"note {one_line(note)}")
    sizes = result["sizes"]
    print(f"{result['repo_id']}: {count(len(sizes), 'file')}, {memory(sum(sizes.values()))}")
    if result["commit"] is not None:
        print(f"  commit {result['commit']}")
        print(f"  {result['url']}")
        return 0
    for name, size in sizes.items():
        print(f"  {size:>15,}  {one_line(name)}")
    for name, value in result["metadata"].items():
        print(f"  metadata {one_line(name)}: {one_line(value, 200)}")
    print(f"  signature {one_line(result['signature'])}")
    print(
        "nothing was sent (--yes). Only the hub can say whether the name is free or yours, and "
        "whether it knows the licence and the other metadata: it is asked that before any file."
    )
    return 0

"""regrpo release: a run's model, card and provenance as a folder to hand on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from regrpo.core.errors import Refused
from regrpo.core.text import count, memory, one_line
from regrpo.records.find import Finder
from regrpo.release.release import Options, release
from regrpo.tracking.lookup import Lookup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="RUN",
        help="an MLflow run id, a DVC experiment or a git revision; `workspace` is this folder's",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to make; a signature lies beside it, as DIR.sig",
    )
    parser.add_argument(
        "--key", type=Path, metavar="PEM", help="sign with this elliptic curve's private key"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the key's certificate, to sign by that"
    )
    parser.add_argument(
        "--chain",
        type=Path,
        nargs="+",
        default=(),
        metavar="PEM",
        help="the certificates between that and the root",
    )
    parser.add_argument(
        "--repo-id", metavar="OWNER/NAME", help="the hub's name of it, for the card's quick start"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="release a run that does not audit clean; the card says so",
    )
    parser.add_argument("--no-mlflow", action="store_true", help="tell MLflow nothing of it")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = (
        "Exit code 1: the run does not audit clean, or DIR is not empty; "
        "2: files or packages are missing."
    )


def run(args: argparse.Namespace) -> int:
    if args.key is None and args.certificate is not None:
        raise Refused(
            "--certificate",
            expected="the certificate's private key (--key) with it",
            found="none",
            remedy="Give both.",
        )
    rows = None if args.no_mlflow else Lookup()
    place = Finder(Path.cwd(), rows).find(args.target)
    options = Options(
        key=args.key,
        certificate=args.certificate,
        chain=args.chain,
        repo_id=args.repo_id,
        force=args.force,
        mlflow=not args.no_mlflow,
    )
    result = release(place, args.out, options)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(f"note {one_line(note)}")
    folder, size = one_line(result["folder"]), memory(result["bytes"])
    print(f"{folder}: {count(result['files'], 'file')}, {size}")
    print(f"  pipeline {result['pipeline_key']}")
    print(f"  SHA256SUMS {result['sha256']}")
    print(f"  signature {one_line(result['signature'] or 'none (--key)')}")
    return 0

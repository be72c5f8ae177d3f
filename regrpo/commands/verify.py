"""regrpo verify: whether a released folder is whole. Needs no repository, and no network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from regrpo.core.text import count, memory, one_line
from regrpo.release.verify import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `regrpo release` made")
    parser.add_argument(
        "--pubkey", type=Path, metavar="PEM", help="the public key that the signature must be of"
    )
    parser.add_argument(
        "--trust",
        type=Path,
        nargs="+",
        default=(),
        metavar="PEM",
        help="root certificates, for a signature by certificate",
    )
    parser.add_argument(
        "--signature", type=Path, metavar="FILE", help="the signature (default: DIR.sig)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = (
        "Exit code 0: whole; 1: not, the first thing that is wrong is named; "
        "2: could not be checked (no release, or a newer regrpo's)."
    )


def run(args: argparse.Namespace) -> int:
    result = verify(
        args.folder,
        public_key=args.pubkey,
        certificates=args.trust,
        signature=args.signature,
    )
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(f"note its audit found: {one_line(note)}")
    print(
        f"whole: {one_line(result['model'])}, {count(result['files'], 'file')}, "
        f"{memory(result['bytes'])}"
    )
    print(f"  pipeline {result['pipeline_key']}")
    print(f"  SHA256SUMS {result['sha256']}")
    print(f"  signature {one_line(result['signature'])}")
    return 0

"""OpenSSF model signatures over a released folder, kept beside it (the package model-signing)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regrpo.core.errors import importing, parsing
from regrpo.core.text import some
from regrpo.release.layout import AROUND, SIGNATURE

PRIVATE = "an elliptic curve's private key without passphrase (PEM; P-256, P-384 or P-521)"
PUBLIC = "an elliptic curve's public key (PEM; P-256, P-384 or P-521)"
HELP = "docs/release.md shows how openssl makes keys and certificates."
PACKAGE = ("model-signing", "the package that signs and verifies", "release")


def beside(folder: Path) -> Path:
    """Where a folder's signature lies."""
    return folder.with_name(f"{folder.name}.sig")


def find(folder: Path) -> Path:
    """The signature beside a folder, or else the one in it, as the hub has it."""
    if (folder / SIGNATURE).is_file() and not beside(folder).exists():
        return folder / SIGNATURE
    return beside(folder)


def read_signer(key: Path, certificate: Path | None, chain: Sequence[Path]) -> Any:
    """What signs with a key, or with a key and its certificate.

    Raises Refused for what is no such key or certificate, CannotCheck for a file that cannot be
    read and where model-signing is not installed.
    """
    with importing(*PACKAGE):
        from model_signing import hashing, signing
    # A signature says itself what it does not cover, so others' tools pass over that too.
    covered = hashing.Config().set_ignored_paths(paths=AROUND)
    config = signing.Config().set_hashing_config(covered)
    with parsing(key, PRIVATE, HELP):
        signer = config.use_elliptic_key_signer(private_key=key)
    if certificate is None:
        return signer
    with parsing(certificate, f"the certificate (PEM) of the key {key.name}, and its chain", HELP):
        return config.use_certificate_signer(
            private_key=key, signing_certificate=certificate, certificate_chain=chain
        )


def read_verifier(public_key: Path | None, chain: Sequence[Path]) -> Any:
    """What verifies with a public key, or with the certificates that are trusted.

    Raises as `read_signer` does.
    """
    with importing(*PACKAGE):
        from model_signing import verifying
    config = verifying.Config()
    if public_key is not None:
        with parsing(public_key, PUBLIC, HELP):
            return config.use_elliptic_key_verifier(public_key=public_key)
    with parsing(chain[0], "certificates to trust (PEM)", HELP):
        return config.use_certificate_verifier(certificate_chain=chain)


def verify(verifier: Any, folder: Path, signature: Path) -> None:
    """Raise Refused unless `signature` is the verifier's key's, and of these files."""
    expected = "the signature of this folder, by the key or certificate that was given"
    remedy = "Do not use it. Get folder and signature again from whoever made them."
    said = io.StringIO()  # model-signing prints advice on older signatures
    with parsing(signature, expected, remedy), contextlib.redirect_stdout(said):
        try:
            verifier.verify(folder, signature)
        except ValueError as error:
            # It prints both digests of every file, as bytes.
            changed = re.findall(r"Hash mismatch for \\?'(.+?)\\?':", str(error))
            if not changed:
                raise
            raise ValueError(f"other bytes than were signed in {some(changed)}") from error

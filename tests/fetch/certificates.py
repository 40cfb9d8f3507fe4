"""A certificate authority of the tests' own, and what it signed."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.answers import CAT
from tests.origin import Origin


@dataclass(frozen=True)
class Certificates:
    """.pem files with key and certificate."""

    authority: Path
    """Its certificate only."""
    good: Path
    """For images.test and 127.0.0.1."""
    expired: Path
    misnamed: Path
    """For other.test."""
    self_signed: Path


def make_certificates(folder: Path) -> Certificates:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    def key_for(name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]

    def self_signed(name: str, *extensions: str) -> None:
        added = [part for extension in extensions for part in ("-addext", extension)]
        subject = ["-subj", f"/CN={name}", "-days", "2"]
        openssl("req", "-x509", *key_for(name), "-out", f"{name}.crt", *subject, *added)

    def signed(name: str, alternative_names: str, *validity: str) -> Path:
        openssl("req", *key_for(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "extensions").write_text(f"subjectAltName={alternative_names}\n")
        # `openssl ca` is the one that can set a date in the past.
        openssl("ca", "-batch", "-notext", "-config", "ca.conf", "-cert", "authority.crt",
                "-keyfile", "authority.key", "-in", f"{name}.csr", "-out", f"{name}.crt",
                "-extfile", "extensions", *validity)  # fmt: skip
        return with_key(name)

    def with_key(name: str) -> Path:
        pem = folder / f"{name}.pem"
        pem.write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text())
        return pem

    (folder / "index.txt").touch()
    (folder / "serial.txt").write_text("1000\n")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=ours\n[ours]\ndatabase=index.txt\nserial=serial.txt\nnew_certs_dir=.\n"
        "default_md=sha256\ndefault_days=2\npolicy=any\n[any]\ncommonName=supplied\n"
    )
    names = "DNS:images.test,IP:127.0.0.1"
    self_signed("authority", "keyUsage=critical,keyCertSign,cRLSign")
    self_signed("lonely", f"subjectAltName={names}")
    past = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
    return Certificates(
        authority=folder / "authority.crt",
        good=signed("good", names),
        expired=signed("expired", names, *past),
        misnamed=signed("misnamed", "DNS:other.test"),
        self_signed=with_key("lonely"),
    )


def server_context(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextlib.contextmanager
def tls_origin(pem: Path, *, names_asked: list[str | None] | None = None) -> Iterator[Origin]:
    """An origin with /cat.jpg; `names_asked` is filled with the name (SNI) of each connection."""
    context = server_context(pem)
    if names_asked is not None:
        context.sni_callback = lambda connection, name, context: names_asked.append(name)
    with Origin(tls=context) as origin:
        origin.serve("/cat.jpg", CAT)
        yield origin

"""The certificate of a running server: its files are replaced, by a program or by Kubernetes, and it is followed."""

import logging
from pathlib import Path

import pytest

from service.wire.provenance import rotation
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.provenance.verification import read_manifest
from tests.service.wire.provenance.authority import Authority
from tests.service.wire.provenance.test_packet import file_of


def test_a_certificate_that_is_replaced_is_used_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rotation, "CHECK_SECONDS", 0.0)
    caplog.set_level(logging.INFO, logger="lithograph")
    old, new = Authority(tmp_path, "Old Root"), Authority(tmp_path, "New Root")
    certificate, key = old.issue(days=(-1, 3))
    signer = ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key).signer()
    assert signer is not None

    def is_signed_by(authority: Authority) -> bool | None:
        content = signer.sign(file_of("png"), "image/png", ())
        return read_manifest(content, trust=authority.root.read_text()).is_trusted

    assert is_signed_by(old)
    assert is_signed_by(old)
    assert caplog.text.count("c2pa certificate expires") == 1  # three days before its end
    before = key.read_bytes()
    new.issue(days=(-1, 30))
    after = key.read_bytes()
    key.write_bytes(before)  # the certificate is there, its key not yet
    assert is_signed_by(old)
    assert is_signed_by(old)
    assert caplog.text.count("c2pa certificate not read") == 1
    key.write_bytes(after)
    assert is_signed_by(new)
    assert "c2pa certificate read" in caplog.text
    key.unlink()
    assert is_signed_by(new)
    assert "PRIVATE" not in caplog.text


def test_a_secret_that_kubernetes_replaces_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "CHECK_SECONDS", 0.0)
    old, new = Authority(tmp_path, "Old Root"), Authority(tmp_path, "New Root")
    mount = tmp_path / "mount"
    mount.mkdir()

    def mount_as_the_kubelet_does(version: str, authority: Authority) -> None:
        (mount / version).mkdir()
        for name, file in zip(("tls.crt", "tls.key"), authority.issue(), strict=True):
            (mount / version / name).write_bytes(file.read_bytes())
        (mount / "..data_tmp").symlink_to(version)
        (mount / "..data_tmp").rename(mount / "..data")

    mount_as_the_kubelet_does("..2026_01", old)
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    signer = ProvenanceConfig(c2pa_certificate=mount / "tls.crt", c2pa_key=mount / "tls.key").signer()
    assert signer is not None
    for version, authority in (("..2026_01", old), ("..2026_02", new)):
        if authority is new:
            mount_as_the_kubelet_does(version, authority)
        manifest = read_manifest(signer.sign(file_of("png"), "image/png", ()), trust=authority.root.read_text())
        assert manifest is not None
        assert manifest.is_trusted, version

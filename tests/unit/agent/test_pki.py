"""The lab's CA, checked with OpenSSL's own verifier."""

import datetime
import stat
import subprocess

import pytest
from cryptography import x509

import opendpu.pki
from opendpu.errors import InvalidArgumentError
from opendpu.pki import Authority


def test_issued_once_private_and_accepted_by_openssl(tmp_path):
    authority = Authority(tmp_path / "pki")
    files = authority.issue("agent-1", dns=["soc1"], ips=["10.98.0.1"], role="conductor")
    content = files.certificate.read_bytes()
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "pki" / "ca.key").stat().st_mode) == 0o600
    again = Authority(tmp_path / "pki").issue("agent-1", dns=["soc1"], ips=["10.98.0.1"], role="conductor")
    assert again.certificate.read_bytes() == content
    for purpose in ("sslserver", "sslclient"):
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", files.ca, files.certificate],
            check=True,
        )
    certificate = x509.load_pem_x509_certificate(content)
    assert certificate.subject.rfc4514_string() == "CN=soc1"  # the id that OVN's access control goes by
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:opendpu:role:conductor"]


def test_renewed_when_names_change_or_the_end_is_near(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    first = authority.issue("a", ips=["10.0.0.1"]).certificate.read_bytes()
    second = authority.issue("a", ips=["10.0.0.2"]).certificate.read_bytes()
    assert first != second
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=340)
    monkeypatch.setattr(opendpu.pki, "_now", lambda: later)
    assert authority.issue("a", ips=["10.0.0.2"]).certificate.read_bytes() != second


def test_a_broken_certificate_is_made_anew(tmp_path):
    authority = Authority(tmp_path)
    files = authority.issue("a")
    files.certificate.write_text("garbage")
    authority.issue("a")
    assert x509.load_pem_x509_certificate(files.certificate.read_bytes())


@pytest.mark.parametrize("name", ["../a", "", "ca", "A B"])
def test_names_that_are_no_files(tmp_path, name):
    with pytest.raises(InvalidArgumentError):
        Authority(tmp_path).issue(name)

"""An authority that signs certificates for tests."""

import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def _name(common_name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Issued:
    """A certificate and its key, in PEM."""

    def __init__(self, certificate, key):
        self.serial_number = certificate.serial_number
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self._key = key
        self.key = self.key_with(serialization.NoEncryption())

    def key_with(self, encryption):
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class Authority:
    def __init__(self, name="Test authority"):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = datetime.datetime.now(datetime.timezone.utc)
        self.certificate = self._sign(
            x509.CertificateBuilder().subject_name(self._name)
            .public_key(self._key.public_key())
            .not_valid_before(now - 9 * DAY).not_valid_after(now + 9 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        ).public_bytes(serialization.Encoding.PEM)

    def _sign(self, builder):
        return (builder.issuer_name(self._name).serial_number(x509.random_serial_number())
                .sign(self._key, hashes.SHA256()))

    def issue(self, name, days=(-1, 1)):
        """For a server at 127.0.0.1 and "whit.example", or for a client; `days` from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        names = [x509.DNSName("whit.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return Issued(self._sign(
            x509.CertificateBuilder().subject_name(_name(name)).public_key(key.public_key())
            .not_valid_before(now + days[0] * DAY).not_valid_after(now + days[1] * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)), key)


def replace(path, content):
    """In one step, as whoever rotates a certificate does."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)

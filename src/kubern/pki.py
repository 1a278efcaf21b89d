"""The cluster's keys and certificates, and the kubeconfigs that carry them.

`ensure(directory, …)` makes what is missing and renews what is near its end, keeps everything else: a restart changes nothing.
Files have kubeadm's names, mode 0600, and appear whole or not at all. Elliptic keys (P-256) because they are made in
microseconds; the service-account key is RSA, because every OIDC verifier takes RS256. Not here: checking certificates
(api/authn/x509.py). Upstream: kubeadm app/phases/certs; best practices, "PKI certificates and requirements".
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
RENEW_DAYS = 60            # a leaf with less left is made anew
BACKDATE_S = 300           # clocks differ

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM, and where they lie."""

    cert: bytes
    key: bytes
    cert_path: Path
    key_path: Path

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.cert)

    @property
    def private_key(self) -> Key:
        key = serialization.load_pem_private_key(self.key, None)
        assert isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey))
        return key


# (name, common name, organizations): the identities of the cluster's own parts, signed by the cluster CA
CLIENTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("admin", "kubernetes-admin", ("system:masters",)),
    ("controller-manager", "system:kube-controller-manager", ()),
    ("scheduler", "system:kube-scheduler", ()),
    ("proxy", "system:kube-proxy", ()),
    ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",)),
)


@dataclass(frozen=True, slots=True)
class Pki:
    """Everything `ensure` made. `clients` by the names in CLIENTS."""

    directory: Path
    ca: Pair
    front_proxy_ca: Pair
    front_proxy_client: Pair
    apiserver: Pair
    clients: Mapping[str, Pair]
    service_account_key: bytes        # private, PEM
    service_account_public: bytes

    def node_client(self, node: str) -> Pair:
        """The kubelet's client certificate: system:node:NAME in system:nodes."""
        return client(self.directory, f"kubelet-{node}-client", f"system:node:{node}", ("system:nodes",), self.ca)


def ensure(directory: Path | str, dns: Iterable[str] = (), ips: Iterable[str] = (), now: dt.datetime | None = None) -> Pki:
    """Make, renew or load all of it. `dns` and `ips` are what clients call the API server by, besides the names every
    cluster has; a serving certificate that lacks one of them is made anew."""
    d = Path(directory)
    d.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = authority(d, "ca", "kubernetes", now)
    proxy_ca = authority(d, "front-proxy-ca", "front-proxy-ca", now)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", *dns]
    clients = {name: client(d, name, cn, orgs, ca, now) for name, cn, orgs in CLIENTS}
    private, public = service_account_keys(d)
    return Pki(d, ca, proxy_ca, client(d, "front-proxy-client", "front-proxy-client", (), proxy_ca, now),
               serving(d, "apiserver", "kube-apiserver", names, ["127.0.0.1", "::1", *ips], ca, (), now), clients, private, public)


def authority(d: Path, name: str, common_name: str, now: dt.datetime | None = None) -> Pair:
    """A self-signed CA. It is never renewed by itself: that would make everything it signed worthless."""
    found = _load(d, name)
    if found:
        return found
    key = _new_key()
    usage = x509.KeyUsage(digital_signature=True, key_encipherment=True, key_cert_sign=True, content_commitment=False,
                          data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False)
    subject = _name(common_name, ())
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(usage, critical=True)
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(ski, critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
    return _save(d, name, builder.sign(key, hashes.SHA256()), key)


def client(d: Path, name: str, common_name: str, organizations: Sequence[str], ca: Pair, now: dt.datetime | None = None) -> Pair:
    """A client certificate, loaded if it is still good."""
    subject = _name(common_name, organizations)
    found = _load(d, name)
    if found and _good(found, ca, subject, now):
        return found
    key = _new_key()
    return _save(d, name, _leaf(subject, key.public_key(), ca, (ExtendedKeyUsageOID.CLIENT_AUTH,), LEAF_DAYS, now), key)


def serving(d: Path, name: str, common_name: str, dns: Iterable[str], ips: Iterable[str], ca: Pair, organizations: Sequence[str] = (),
            now: dt.datetime | None = None) -> Pair:
    """A serving certificate for these names and addresses, loaded if it is still good and covers them all."""
    wanted_dns = list(dict.fromkeys(dns))
    wanted_ips = list(dict.fromkeys(ipaddress.ip_address(i) for i in ips))
    subject = _name(common_name, organizations)
    found = _load(d, name)
    if found and _good(found, ca, subject, now):
        sans = found.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        have_dns, have_ips = set(sans.get_values_for_type(x509.DNSName)), set(sans.get_values_for_type(x509.IPAddress))
        if have_dns >= set(wanted_dns) and have_ips >= set(wanted_ips):
            return found
        wanted_dns += sorted(have_dns - set(wanted_dns))          # names once served stay served
        wanted_ips += [i for i in have_ips if i not in wanted_ips and isinstance(i, (ipaddress.IPv4Address, ipaddress.IPv6Address))]
    key = _new_key()
    names: list[x509.GeneralName] = [x509.DNSName(n) for n in wanted_dns]
    names += [x509.IPAddress(i) for i in wanted_ips]
    usages = (ExtendedKeyUsageOID.SERVER_AUTH,)
    return _save(d, name, _leaf(subject, key.public_key(), ca, usages, LEAF_DAYS, now, names), key)


def service_account_keys(d: Path) -> tuple[bytes, bytes]:
    """The key pair that signs service-account tokens: (private PEM, public PEM) in sa.key and sa.pub."""
    private_path, public_path = d / "sa.key", d / "sa.pub"
    if private_path.exists():
        private = private_path.read_bytes()
        key = serialization.load_pem_private_key(private, None)
    else:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = _key_pem(key)
        write_private(private_path, private)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not public_path.exists() or public_path.read_bytes() != public:
        write_private(public_path, public)
    return private, public


def sign_request(ca: Pair, csr: bytes, usages: Sequence[str], seconds: int, now: dt.datetime | None = None) -> bytes:
    """The certificate (PEM) for a signing request, with the extended usages named as in certificates.k8s.io; nothing the request
    asks for besides its subject and alternative names is taken over."""
    request = x509.load_pem_x509_csr(csr)
    names: list[x509.GeneralName] = []
    try:
        names = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        pass
    known = {"client auth": ExtendedKeyUsageOID.CLIENT_AUTH, "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
             "code signing": ExtendedKeyUsageOID.CODE_SIGNING, "email protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
             "timestamping": ExtendedKeyUsageOID.TIME_STAMPING, "ocsp signing": ExtendedKeyUsageOID.OCSP_SIGNING}
    extended = [known[u] for u in usages if u in known]
    cert = _leaf(request.subject, request.public_key(), ca, extended, seconds / 86400, now, names, "key encipherment" in usages)
    return cert.public_bytes(serialization.Encoding.PEM)


# -- building blocks

def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str, organizations: Sequence[str]) -> x509.Name:
    return x509.Name([*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations),
                      x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, public: Any, days: float, now: dt.datetime | None) -> x509.CertificateBuilder:
    t = now or dt.datetime.now(dt.UTC)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(t - dt.timedelta(seconds=BACKDATE_S))
            .not_valid_after(t + dt.timedelta(days=days)))


def _leaf(subject: x509.Name, public: Any, ca: Pair, extended: Sequence[x509.ObjectIdentifier], days: float, now: dt.datetime | None,
          names: Sequence[x509.GeneralName] = (), encipher: bool = True) -> x509.Certificate:
    usage = x509.KeyUsage(digital_signature=True, key_encipherment=encipher, key_cert_sign=False, content_commitment=False,
                          data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False)
    issuer = ca.certificate
    b = _builder(subject, issuer.subject, public, days, now).add_extension(usage, critical=True)
    if extended:
        b = b.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    b = b.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
    if names:
        b = b.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    return b.sign(ca.private_key, hashes.SHA256())


def _good(found: Pair, ca: Pair, subject: x509.Name, now: dt.datetime | None) -> bool:
    """Signed by this CA, for this subject, and not near its end."""
    cert = found.certificate
    if cert.subject != subject or cert.not_valid_after_utc < (now or dt.datetime.now(dt.UTC)) + dt.timedelta(days=RENEW_DAYS):
        return False
    try:
        cert.verify_directly_issued_by(ca.certificate)
    except Exception:   # any failure to verify means the same: not ours
        return False
    return cert.public_key() == found.private_key.public_key()


def _key_pem(key: Any) -> bytes:
    out: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return out


def _load(d: Path, name: str) -> Pair | None:
    cert_path, key_path = d / f"{name}.crt", d / f"{name}.key"
    try:
        pair = Pair(cert_path.read_bytes(), key_path.read_bytes(), cert_path, key_path)
        _ = pair.certificate, pair.private_key
    except (OSError, ValueError):
        return None
    return pair


def _save(d: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    """The key first: a crash in between leaves a pair that does not match, which `_good` notices."""
    pair = Pair(cert.public_bytes(serialization.Encoding.PEM), _key_pem(key), d / f"{name}.crt", d / f"{name}.key")
    write_private(pair.key_path, pair.key)
    write_private(pair.cert_path, pair.cert)
    return pair


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically, mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")    # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# -- kubeconfig

def kubeconfig(name: str, server: str, ca: bytes, pair: Pair | None = None, token: str = "", user: str = "",
               namespace: str = "") -> dict[str, Any]:
    """A kubeconfig with one context, everything embedded; identity by certificate or token."""
    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    who = user or f"{name}-admin"
    identity: dict[str, Any] = {"token": token} if token else {}
    if pair:
        identity = {"client-certificate-data": b64(pair.cert), "client-key-data": b64(pair.key)}
    context = {"cluster": name, "user": who, **({"namespace": namespace} if namespace else {})}
    cluster = {"server": server, "certificate-authority-data": b64(ca)}
    return {"apiVersion": "v1", "kind": "Config", "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": who, "user": identity}], "contexts": [{"name": name, "context": context}],
            "current-context": name, "preferences": {}}


def write_kubeconfig(path: Path | str, config: Mapping[str, Any]) -> None:
    import yaml
    write_private(Path(path), yaml.safe_dump(dict(config), sort_keys=False).encode())


def merge_kubeconfig(path: Path | str, config: Mapping[str, Any], switch: bool = True) -> None:
    """Put a config's cluster, user and context into a kubeconfig file, replacing entries of the same names and nothing else.
    `switch` makes its context the current one. A file that cannot be read as a kubeconfig raises ValueError and stays as it is."""
    import yaml
    p = Path(path).expanduser()
    p = p.resolve() if p.is_symlink() else p
    old: Any = {}
    if p.exists():
        try:
            old = yaml.safe_load(p.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ValueError(f"{p} is not a kubeconfig: {e}") from e
        if not isinstance(old, dict):
            raise ValueError(f"{p} is not a kubeconfig: it holds no mapping")
    merged = {"apiVersion": "v1", "kind": "Config", **old}
    for section in ("clusters", "users", "contexts"):
        have = merged.get(section) or []
        if not isinstance(have, list):
            raise ValueError(f"{p} is not a kubeconfig: {section} is not a list")
        new = {e["name"]: e for e in config.get(section) or ()}
        kept = [e for e in have if not (isinstance(e, dict) and e.get("name") in new)]
        merged[section] = kept + list(new.values())
    if switch or not merged.get("current-context"):
        merged["current-context"] = config["current-context"]
    write_kubeconfig(p, merged)

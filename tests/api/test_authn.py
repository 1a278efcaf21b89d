"""Authentication: certificates, tokens, impersonation, without a server."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubern import pki
from kubern.api.authn import Authenticator, Keys, TokenError
from kubern.api.authn.tokens import claims, legacy_token
from kubern.api.authz import Authorizer
from kubern.model.request import Request
from kubern.model.status import StatusError

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.ensure(tmp_path_factory.mktemp("pki"), ips=["10.96.0.1"])


class World:
    """Objects by (plural, namespace, name), and an authenticator over them."""

    def __init__(self, made: pki.Pki) -> None:
        self.objects: dict[tuple[str, str, str], Any] = {}
        self.now = NOW
        self.authorizer = Authorizer()
        self.keys = Keys(made.service_account_key)
        self.authn = Authenticator(self.authorizer, self.keys, lambda r, ns, n: self.objects.get((r, ns, n)), client_cas=made.ca.cert,
                                   proxy_cas=made.front_proxy_ca.cert, now=lambda: self.now)
        self.add("serviceaccounts", "n", "a")

    def add(self, plural: str, ns: str, name: str, **more: Any) -> dict[str, Any]:
        obj = {"metadata": {"name": name, "namespace": ns, "uid": f"uid-{plural}-{name}"}, **more}
        self.objects[(plural, ns, name)] = obj
        return obj

    async def user(self, **kw: Any) -> Any:
        return await self.authn.authenticate(Request("GET", "/api/v1/namespaces/n/pods", **kw))

    def bearer(self, token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}


@pytest.fixture
def world(made: pki.Pki) -> World:
    return World(made)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


async def test_certificate_names_user_and_groups(world: World, made: pki.Pki) -> None:
    world.now = x509.load_pem_x509_certificate(made.ca.cert).not_valid_before_utc.timestamp() + 60
    user = await world.user(certificate=der(made.clients["admin"].cert))
    assert (user.name, user.groups) == ("kubernetes-admin", ("system:masters", "system:authenticated"))
    node = await world.user(certificate=der(made.node_client("w1").cert))
    assert (node.name, node.groups) == ("system:node:w1", ("system:nodes", "system:authenticated"))
    # a serving certificate is no identity
    with pytest.raises(StatusError, match="Unauthorized"):
        await world.user(certificate=der(made.apiserver.cert))


async def test_front_proxy_speaks_for_others_only(world: World, made: pki.Pki) -> None:
    world.now = x509.load_pem_x509_certificate(made.ca.cert).not_valid_before_utc.timestamp() + 60
    proxy = der(made.front_proxy_client.cert)
    headers = {"x-remote-user": "jane", "x-remote-group": "devs", "x-remote-extra-scopes": "a"}
    user = await world.user(certificate=proxy, headers=headers)
    assert (user.name, user.groups, user.extra) == ("jane", ("devs", "system:authenticated"), {"scopes": ("a",)})
    assert (await world.user(certificate=proxy)).name == "system:anonymous"
    assert (await world.user(certificate=der(made.clients["admin"].cert), headers=headers)).name == "kubernetes-admin"


async def test_bound_token_dies_with_its_pod(world: World) -> None:
    account = world.objects[("serviceaccounts", "n", "a")]
    pod = world.add("pods", "n", "p")
    token = world.keys.sign(claims(account, world.authn.audiences, 3600, NOW, pod=pod))
    user = await world.user(headers=world.bearer(token))
    assert user.name == "system:serviceaccount:n:a"
    assert user.extra["authentication.kubernetes.io/pod-name"] == ("p",)
    del world.objects[("pods", "n", "p")]
    assert (await world.user(headers=world.bearer(token))).name == user.name       # still remembered …
    world.authn.observe("", "pods", "n", "p", None, pod)                            # … until the deletion is seen
    with pytest.raises(StatusError):
        await world.user(headers=world.bearer(token))


async def test_token_of_a_recreated_account_is_refused(world: World) -> None:
    token = world.keys.sign(claims(world.objects[("serviceaccounts", "n", "a")], world.authn.audiences, 3600, NOW))
    world.objects[("serviceaccounts", "n", "a")]["metadata"]["uid"] = "other"
    with pytest.raises(TokenError, match=r"service account UID \(other\) does not match claim"):
        await world.authn.verify(token, world.authn.audiences)


async def test_expiry_audience_and_signature(world: World, tmp_path: Any) -> None:
    account = world.objects[("serviceaccounts", "n", "a")]
    token = world.keys.sign(claims(account, ["x"], 600, NOW))
    with pytest.raises(TokenError, match='token audiences \\["x"\\] is invalid for the target audiences'):
        await world.authn.verify(token, world.authn.audiences)
    verified = await world.authn.verify(token, ["y", "x"])
    assert verified and verified.audiences == ("x",)
    world.now += 600 + 61
    with pytest.raises(TokenError, match="expired"):
        await world.authn.verify(token, ["x"])
    other = Keys(pki.service_account_keys(tmp_path)[0])
    with pytest.raises(TokenError, match="no keys found"):
        await world.authn.verify(other.sign(claims(account, ["x"], 600, NOW)), ["x"])
    assert await world.authn.verify("nonsense", ["x"]) is None


async def test_legacy_and_bootstrap_tokens(world: World) -> None:
    account = world.objects[("serviceaccounts", "n", "a")]
    secret = world.add("secrets", "n", "t")
    token = legacy_token(world.keys, account, secret)
    secret["data"] = {"token": base64.b64encode(token.encode()).decode()}
    assert (await world.user(headers=world.bearer(token))).uid == "uid-serviceaccounts-a"

    def b(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    world.add("secrets", "kube-system", "bootstrap-token-abcdef", type="bootstrap.kubernetes.io/token",
              data={"token-id": b("abcdef"), "token-secret": b("0123456789abcdef"), "usage-bootstrap-authentication": b("true"),
                    "auth-extra-groups": b("system:bootstrappers:kubeadm:default-node-token")})
    user = await world.user(headers=world.bearer("abcdef.0123456789abcdef"))
    assert user.name == "system:bootstrap:abcdef"
    assert user.groups == ("system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated")


@pytest.mark.parametrize("value", ["", "Basic YTpi", "Bearer", "Bearer "])
async def test_no_bearer_token_is_anonymous(world: World, value: str) -> None:
    assert (await world.user(headers={"authorization": value})).name == "system:anonymous"


async def test_impersonation(world: World, made: pki.Pki) -> None:
    world.now = x509.load_pem_x509_certificate(made.ca.cert).not_valid_before_utc.timestamp() + 60
    admin = der(made.clients["admin"].cert)
    user = await world.user(certificate=admin, headers={"impersonate-user": "jane", "impersonate-extra-example.com%2fkey": "v"},
                            repeated={"impersonate-group": ["devs", "ops"]})
    assert (user.name, user.groups, user.extra) == ("jane", ("devs", "ops", "system:authenticated"), {"example.com/key": ("v",)})
    account = await world.user(certificate=admin, headers={"impersonate-user": "system:serviceaccount:n:a"})
    assert account.groups == ("system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated")
    with pytest.raises(StatusError) as e:
        await world.user(certificate=admin, headers={"impersonate-group": "g"})
    assert e.value.message == ('requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)} '
                               "without impersonating a user name")
    token = world.keys.sign(claims(world.objects[("serviceaccounts", "n", "a")], world.authn.audiences, 3600, world.now))
    with pytest.raises(StatusError) as e:
        await world.user(headers={**world.bearer(token), "impersonate-user": "jane"})
    assert e.value.message == ('pods is forbidden: User "system:serviceaccount:n:a" cannot impersonate-on:user-info:list resource "pods" '
                               'in API group "" in the namespace "n"')


def test_pki_is_kept_and_renewed(tmp_path: Any) -> None:
    import datetime as dt
    first = pki.ensure(tmp_path)
    assert pki.ensure(tmp_path).apiserver.cert == first.apiserver.cert
    later = pki.ensure(tmp_path, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=330))
    assert later.clients["admin"].cert != first.clients["admin"].cert
    assert later.ca.cert == first.ca.cert
    assert all((tmp_path / f).stat().st_mode & 0o777 == 0o600 for f in ("ca.key", "apiserver.key", "sa.key", "admin.crt"))
    assert dataclasses.asdict(first)


def test_kubeconfig_merge_keeps_what_is_there(tmp_path: Any) -> None:
    import yaml
    path = tmp_path / "config"
    path.write_text("apiVersion: v1\nkind: Config\ncurrent-context: old\nclusters: [{name: old, cluster: {server: 'https://x'}}]\n"
                    "contexts: [{name: old, context: {cluster: old, user: old}}]\nusers: []\nextensions: [{name: e}]\n")
    pki.merge_kubeconfig(path, pki.kubeconfig("kubern", "https://127.0.0.1:6443", b"ca", token="t"))
    merged = yaml.safe_load(path.read_text())
    assert [c["name"] for c in merged["clusters"]] == ["old", "kubern"]
    assert merged["current-context"] == "kubern"
    assert merged["extensions"] == [{"name": "e"}]
    path.write_text("- not\n- a config\n")
    with pytest.raises(ValueError, match="not a kubeconfig"):
        pki.merge_kubeconfig(path, pki.kubeconfig("kubern", "https://127.0.0.1:6443", b"ca", token="t"))
    assert path.read_text() == "- not\n- a config\n"


def issued(common_name: str, by: tuple[x509.Certificate, Any], ca: bool = False, days: float = 30) -> tuple[x509.Certificate, Any]:
    """A certificate and its key, issued by another pair."""
    import datetime as dt

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name), x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "devs")])
    b = (x509.CertificateBuilder().subject_name(name).issuer_name(by[0].subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
         .not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=days)))
    if ca:
        usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
        b = b.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
        b = b.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        b = b.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by[1].public_key()), False)
    else:
        b = b.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    return b.sign(by[1], hashes.SHA256()), key


async def test_intermediates_lead_to_a_known_authority(world: World, made: pki.Pki) -> None:
    import time

    def raw(*certificates: tuple[x509.Certificate, Any]) -> tuple[bytes, ...]:
        return tuple(c.public_bytes(Encoding.DER) for c, _ in certificates)
    world.now = time.time()
    root = made.ca.certificate, made.ca.private_key
    middle = issued("middle", root, ca=True, days=10)
    lower = issued("lower", middle, ca=True)
    bob = issued("bob", lower)
    user = await world.user(certificate=raw(bob)[0], intermediates=raw(lower, middle))
    assert (user.name, user.groups) == ("bob", ("devs", "system:authenticated"))
    for sent in ((), raw(lower), raw(middle), raw(issued("middle", root, ca=True))):
        with pytest.raises(StatusError, match="Unauthorized"):
            await world.user(certificate=raw(bob)[0], intermediates=sent)
    eve = issued("system:admin", bob)                                # a client's certificate issues nothing
    with pytest.raises(StatusError, match="Unauthorized"):
        await world.user(certificate=raw(eve)[0], intermediates=raw(bob, lower, middle))
    proxy = issued("front-proxy-client", issued("proxies", (made.front_proxy_ca.certificate, made.front_proxy_ca.private_key), ca=True))
    with pytest.raises(StatusError, match="Unauthorized"):
        await world.user(certificate=raw(proxy)[0], headers={"x-remote-user": "jane"})
    world.now += 11 * 86400                                          # as long as every link holds
    with pytest.raises(StatusError, match="Unauthorized"):
        await world.user(certificate=raw(bob)[0], intermediates=raw(lower, middle))


async def test_a_front_proxy_needs_the_right_name_and_authority(world: World, made: pki.Pki) -> None:
    import time

    world.now = time.time()
    by = made.front_proxy_ca.certificate, made.front_proxy_ca.private_key
    headers = {"x-remote-user": "jane", "x-remote-uid": "7", "x-remote-extra-acme.com%2fproject": "p"}
    allowed, other = (issued(n, by)[0].public_bytes(Encoding.DER) for n in ("front-proxy-client", "other"))
    user = await world.user(certificate=allowed, headers=headers)
    assert (user.name, user.uid, user.extra) == ("jane", "7", {"acme.com/project": ("p",)})
    with pytest.raises(StatusError, match="Unauthorized"):
        await world.user(certificate=other, headers=headers)
    wrong = issued("front-proxy-client", (made.ca.certificate, made.ca.private_key))[0].public_bytes(Encoding.DER)
    assert (await world.user(certificate=wrong, headers=headers)).name == "front-proxy-client"      # a user of its own, and nobody else
    assert (await world.user(headers=headers)).name == "system:anonymous"

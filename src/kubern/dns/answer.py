"""Answer: a query's bytes and the index to a reply's bytes. Pure; what needs other servers is said, not done.

Source: Kubernetes DNS-Based Service Discovery 1.1; where it leaves a choice, CoreDNS with the configuration kubeadm gives it
(pods insecure, round robin, SRV targets in the additional section).
"""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass, field

from kubern.dns import codec
from kubern.dns.codec import AAAA, ANY, CNAME, NXDOMAIN, PTR, SOA, SRV, TXT, A, Name, Question, Record
from kubern.dns.records import Owner, Records, cluster_ips, dashed

TTL_S = 5
VERSION = "1.1.0"
CACHE_MAX = 20_000
CNAMES_MAX = 8


@dataclass(slots=True)
class Found:
    """What the index says to one question. `ours` False: not our zone, ask upstream. `chase`: a CNAME out of the zone to follow."""

    code: int = 0
    answers: list[Record] = field(default_factory=list)
    additional: list[Record] = field(default_factory=list)
    owners: tuple[Owner, ...] = ()
    ours: bool = True
    chase: Name = ()


NOT_OURS = Found(ours=False)


@dataclass(slots=True)
class Encoded:
    """A Found as bytes, ready to be put behind a question."""

    code: int
    answers: list[bytes]
    authority: list[bytes]
    additional: list[bytes]


class Answerer:
    """Holds the zone, the index and the answers encoded so far. `answer` is the whole of the fast path."""

    def __init__(self, domain: str = "cluster.local") -> None:
        self.zone = codec.name_of(domain)
        self.records = Records(self._changed)
        self._cache: dict[bytes, Encoded] = {}
        self._by_owner: dict[Owner, set[bytes]] = {}

    def _changed(self, owner: Owner) -> None:
        for key in self._by_owner.pop(owner, ()):
            self._cache.pop(key, None)

    def answer(self, query: bytes, udp: bool) -> bytes | tuple[Question, Found]:
        """The reply; b"" for what deserves none; or the question and what is left to do: forward it, or follow a CNAME."""
        try:
            q = codec.parse_query(query)
        except codec.BadMessage:
            return codec.refusal(query, codec.FORMERR)
        if q.flags & 0x7800:
            return codec.refusal(query, codec.NOTIMP)
        if q.class_ not in (codec.CLASS_IN, 255):
            return codec.refusal(query, codec.REFUSED)
        key = q.raw.lower()
        hit = self._cache.get(key)
        if hit is None:
            found = self.find(q.name, q.type)
            if not found.ours or found.chase:
                return q, found
            hit = self.encode(q, found)
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
                self._by_owner.clear()
            self._cache[key] = hit
            for owner in found.owners:
                self._by_owner.setdefault(owner, set()).add(key)
        answers = hit.answers
        if len(answers) > 1 and not answers[0].startswith(codec.TO_QUESTION + b"\0\5"):     # round robin, but never before a CNAME
            i = random.randrange(len(answers))
            answers = answers[i:] + answers[:i]
        return codec.build_reply(q, hit.code, answers, hit.authority, hit.additional, udp=udp)

    def encode(self, q: Question, found: Found) -> Encoded:
        def pack(r: Record) -> bytes:
            return codec.encode_record(r.type, r.ttl, r.data, codec.TO_QUESTION if r.name == q.name else codec.encode_name(r.name))
        authority = [] if found.answers else [codec.encode_record(SOA, TTL_S, self._soa(), codec.encode_name(self.zone))]
        return Encoded(found.code, [pack(r) for r in found.answers], authority, [pack(r) for r in found.additional])

    def _soa(self) -> bytes:
        return codec.soa_data(self.zone, self.records.serial, TTL_S)

    # ---- what a name means

    def find(self, name: Name, type_: int, depth: int = 0) -> Found:
        zone = self.zone
        if name[-len(zone):] == zone:
            return self._in_zone(name, name[:-len(zone)], type_, depth)
        if name[-1:] == ("arpa",) and (ip := reverse_ip(name)):
            return self._reverse(name, ip, type_)
        return NOT_OURS

    def _in_zone(self, name: Name, rest: Name, type_: int, depth: int) -> Found:
        if not rest:
            if type_ in (SOA, ANY):
                return Found(answers=[Record(name, SOA, TTL_S, self._soa())])
            if type_ == codec.NS:
                return Found(answers=[Record(name, codec.NS, TTL_S, codec.encode_name(("ns", "dns", *self.zone)))])
            return Found()
        if rest == ("dns-version",):
            return Found(answers=[Record(name, TXT, TTL_S, codec.text_data(VERSION))] if type_ in (TXT, ANY) else [])
        kind = rest[-1]
        if kind not in ("svc", "pod"):
            return Found(NXDOMAIN)
        if len(rest) == 1:
            return Found()
        namespace = rest[-2]
        if len(rest) == 2:
            return Found(0 if namespace in self.records.namespaces else NXDOMAIN, owners=((namespace, ""),))
        if kind == "pod":
            return self._pod(name, rest, type_)
        return self._service(name, (namespace, rest[-3]), rest[:-3], type_, depth)

    def _pod(self, name: Name, rest: Name, type_: int) -> Found:
        """1-2-3-4.NAMESPACE.pod: the address that stands in the name."""
        owners = ((rest[-2], ""),)
        ip = from_dashed(rest[0]) if len(rest) == 3 and rest[-2] in self.records.namespaces else ""
        return Found(answers=_addresses(name, [ip], type_), owners=owners) if ip else Found(NXDOMAIN, owners=owners)

    def _service(self, name: Name, owner: Owner, before: Name, type_: int, depth: int) -> Found:
        service = self.records.services.get(owner)
        missing = Found(NXDOMAIN, owners=(owner,))
        if service is None:
            return missing
        spec = service["spec"]
        if spec.get("type") == "ExternalName":
            return self._external_name(name, owner, spec.get("externalName") or "", type_, depth) if not before else missing
        full = (owner[1], owner[0], "svc", *self.zone)
        ips = cluster_ips(service)
        if not before:
            if type_ == SRV:
                return self._srv(name, full, owner, ips, "", "")
            if not ips:
                found = self.records.backends(owner)
                if not found:
                    return missing
                return Found(answers=_addresses(name, dict.fromkeys(b.ip for b in found), type_), owners=(owner,))
            return Found(answers=_addresses(name, ips, type_), owners=(owner,))
        if len(before) == 2 and before[0].startswith("_") and before[1].startswith("_"):
            result = self._srv(name, full, owner, ips, before[0][1:], before[1][1:])
            if result.code == 0 and type_ not in (SRV, ANY):
                return Found(owners=(owner,))
            return result
        if len(before) == 1:
            named = [b.ip for b in self.records.backends(owner) if b.label == before[0]]
            return Found(answers=_addresses(name, named, type_), owners=(owner,)) if named else missing
        return missing

    def _srv(self, name: Name, full: Name, owner: Owner, ips: list[str], port: str, protocol: str) -> Found:
        """SRV of one port, or with port "" of all: the service itself if it has an address, else each endpoint."""
        out, extra = [], []
        if ips:
            for p in self.records.services[owner]["spec"].get("ports") or ():
                if not port or ((p.get("name") or "").lower() == port and (p.get("protocol") or "TCP").lower() == protocol):
                    out.append(Record(name, SRV, TTL_S, codec.srv_data(p["port"], full)))
            extra = [r for t in (A, AAAA) for r in _addresses(full, ips, t)]
        else:
            backends = self.records.backends(owner)
            matching = [(b, n) for b in backends for pn, pr, n in b.ports if not port or (pn.lower() == port and pr == protocol)]
            weight = max(1, 100 // len(matching)) if matching else 0
            for b, number in matching:
                target = (b.label, *full)
                out.append(Record(name, SRV, TTL_S, codec.srv_data(number, target, weight=weight)))
                extra += [r for t in (A, AAAA) for r in _addresses(target, [b.ip], t) if r not in extra]
        if not out:
            return Found(NXDOMAIN if port or not ips else 0, owners=(owner,))
        return Found(answers=out, additional=extra, owners=(owner,))

    def _external_name(self, name: Name, owner: Owner, target_text: str, type_: int, depth: int) -> Found:
        target = codec.name_of(target_text)
        cname = [Record(name, CNAME, TTL_S, codec.encode_name(target))]
        if type_ not in (A, AAAA):
            return Found(answers=cname, owners=(owner,)) if type_ in (CNAME, ANY) else Found(owners=(owner,))
        if depth >= CNAMES_MAX:
            return Found(codec.SERVFAIL, owners=(owner,))
        then = self.find(target, type_, depth + 1)
        if not then.ours:
            return Found(answers=cname, owners=(owner,), chase=target)
        return Found(0, [*cname, *then.answers], owners=(owner, *then.owners), chase=then.chase)

    def _reverse(self, name: Name, ip: str, type_: int) -> Found:
        """Names of cluster IPs and of headless endpoints; other addresses are upstream's to know."""
        owners = list(self.records.owners_of(ip))
        if not owners:
            return NOT_OURS
        out = []
        for owner in owners:
            full = (owner[1], owner[0], "svc", *self.zone)
            if ip in cluster_ips(self.records.services[owner]):
                out.append(full)
            else:
                out += [(b.label, *full) for b in self.records.backends(owner) if b.ip == ip]
        answers = [Record(name, PTR, TTL_S, codec.encode_name(n)) for n in dict.fromkeys(out)] if type_ in (PTR, ANY) else []
        return Found(answers=answers, owners=(*owners, ("", ip)))


def _addresses(name: Name, ips: object, type_: int) -> list[Record]:
    """A or AAAA records of those addresses that are of the type."""
    out = []
    for ip in ips:  # type: ignore[attr-defined]
        kind = AAAA if ":" in ip else A
        if type_ in (kind, ANY):
            out.append(Record(name, kind, TTL_S, codec.address_data(ip)))
    return out


def from_dashed(label: str) -> str:
    """"10-244-1-2" -> "10.244.1.2", "fd00--1" -> "fd00::1"; "" if it is no address."""
    for text in (label.replace("-", "."), label.replace("-", ":")):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            pass
    return ""


def reverse_ip(name: Name) -> str:
    """The address a name under in-addr.arpa or ip6.arpa is of, "" if of none."""
    try:
        if name[-2:] == ("in-addr", "arpa") and len(name) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(name[:4]))))
        if name[-2:] == ("ip6", "arpa") and len(name) == 34:
            digits = "".join(reversed(name[:32]))
            return str(ipaddress.IPv6Address(":".join(digits[i:i + 4] for i in range(0, 32, 4))))
    except ValueError:
        pass
    return ""


__all__ = ["Answerer", "Found", "dashed"]

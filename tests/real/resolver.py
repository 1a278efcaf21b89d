"""Asks DNS questions from wherever it runs (the tests: a pod's network namespace) and tells the answers as data.

    nsenter --net=/proc/PID/ns/net python resolver.py SERVER < questions

A question is a line of JSON: {"name", "type", "tcp", "edns"} (all but the name may be missing); the answer is one too.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

TIMEOUT_S = 5.0


def ask(server: str, name: str, type_: str = "A", tcp: bool = False, edns: int = 0) -> dict[str, Any]:
    q = dns.message.make_query(name, type_, use_edns=0 if edns else False, payload=edns or 1232)
    try:
        a = dns.query.tcp(q, server, TIMEOUT_S) if tcp else dns.query.udp(q, server, TIMEOUT_S)
    except (dns.exception.Timeout, OSError):
        return {"code": "TIMEOUT"}

    def rows(section: Any) -> list[list[str]]:
        return [[str(r.name), dns.rdatatype.to_text(r.rdtype), str(x)] for r in section for x in r]
    flags = dns.flags.to_text(a.flags).split()
    return {"code": dns.rcode.to_text(a.rcode()), "answers": rows(a.answer), "authority": rows(a.authority), "additional": rows(a.additional),
            "ttl": min((r.ttl for r in a.answer), default=0), "flags": flags, "edns": a.edns == 0, "question": str(a.question[0].name)}


if __name__ == "__main__":
    for line in sys.stdin:
        q = json.loads(line)
        print(json.dumps(ask(sys.argv[1], q["name"], q.get("type", "A"), q.get("tcp", False), q.get("edns", 0))), flush=True)

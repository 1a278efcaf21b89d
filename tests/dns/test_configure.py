"""The ConfigMap that chooses other servers."""

from __future__ import annotations

import logging

import pytest

from kubern.dns.configure import Choice, parse, within_reach


def config(**data: str) -> dict[str, object]:
    return {"data": data}


def test_domains_and_servers() -> None:
    c = parse(config(stubDomains='{"acme.local": ["1.2.3.4", "fd00::1"], "Corp.": ["10.96.0.9:5353", "[fd00::2]:54"]}', upstreamNameservers='["8.8.8.8"]'))
    assert c == Choice({("acme", "local"): [("1.2.3.4", 53), ("fd00::1", 53)], ("corp",): [("10.96.0.9", 5353), ("fd00::2", 54)]}, [("8.8.8.8", 53)])
    assert parse(None) == parse(config()) == Choice()


@pytest.mark.parametrize("data", [{"stubDomains": "["}, {"stubDomains": "[1]"}, {"stubDomains": '{"a": 1}'}, {"upstreamNameservers": '["name"]'},
                                  {"upstreamNameservers": "3"}, {"stubDomains": '{"a": ["x:y"]}'}])
def test_what_cannot_be_read_is_left_out(data: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse(config(**data)) == Choice()
    assert caplog.records


def test_servers_out_of_reach_are_left_to_the_relay() -> None:
    c = Choice({("near",): [("10.96.0.9", 53)], ("far",): [("192.0.2.1", 53)], ("both",): [("192.0.2.1", 53), ("10.244.1.1", 53)]}, [("192.0.2.1", 53)])
    assert within_reach(c, ["10.96.0.0/16", "10.244.0.0/16", "172.30.0.11/24"]) == Choice({("near",): [("10.96.0.9", 53)], ("both",): [("10.244.1.1", 53)]}, [])

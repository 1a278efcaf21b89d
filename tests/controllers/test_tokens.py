"""Automatic token secrets that nobody uses."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import tokens
from kubern.model.intent import Delete, Fetch, Patch
from tests.controllers.conftest import ListView, drive

NOW = 1893456100.0                              # 2030-01-01T00:01:40Z


def _token(**labels: str) -> ListView:
    secret = {"type": tokens.TYPE, "metadata": {"name": "t", "namespace": "default", "uid": "s", "resourceVersion": "7", "labels": labels,
              "creationTimestamp": "2027-01-01T00:00:00Z", "annotations": {tokens.ACCOUNT_NAME: "default", tokens.ACCOUNT_UID: "u"}}}
    account = {"metadata": {"name": "default", "namespace": "default", "uid": "u"}, "secrets": [{"name": "t"}]}
    return ListView(secrets=[secret], serviceaccounts=[account], pods=[])


@pytest.mark.parametrize(("labels", "kind"), [
    ({}, Patch), ({tokens.LAST_USED: "2028-12-01"}, Patch), ({tokens.LAST_USED: "2029-12-01"}, None), ({tokens.LAST_USED: "when?"}, None),
    ({tokens.INVALID_SINCE: "2028-12-01"}, Delete), ({tokens.INVALID_SINCE: "2029-12-01"}, None), ({tokens.INVALID_SINCE: "x"}, Patch),
])
def test_unused_automatic_tokens_are_marked_and_a_year_later_removed(labels: dict[str, str], kind: type | None) -> None:
    def pass_(view: ListView, since: str) -> list[Any]:
        done = drive(tokens.LEGACY.reconcile({"key": ("", "")}, view, NOW), lambda i: {"data": {"since": since}})
        return [type(i) for i in done if not isinstance(i, Fetch)]
    assert pass_(_token(**labels), "2027-01-01") == ([kind] if kind else [])
    assert pass_(_token(**labels), "2029-06-01") == []                       # not observed for long enough
    mounted = _token(**labels)
    mounted.all["pods"] = [{"metadata": {"name": "p", "namespace": "default"}, "spec": {"volumes": [{"name": "v", "secret": {"secretName": "t"}}]}}]
    assert pass_(mounted, "2027-01-01") == []

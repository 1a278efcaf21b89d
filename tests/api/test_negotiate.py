from __future__ import annotations

import pytest

from kubern.api.negotiate import (
    CONVERSIONS,
    JSON,
    MEDIA,
    NO_TABLE,
    PROTOBUF,
    STREAMS,
    YAML,
    accept_of,
    parse_accept,
    to_yaml,
)
from kubern.model.request import Request
from kubern.model.status import StatusError


def of(accept: str, **query: str) -> tuple[str, str]:
    got = accept_of(Request("GET", "/", {k: [v] for k, v in query.items()}, {"accept": accept}), True)
    return got.media, got.convert


@pytest.mark.parametrize(("accept", "media", "convert"), [
    ("", JSON, ""), ("*/*", JSON, ""), ("application/json", JSON, ""), ("application/yaml", YAML, ""),
    ("application/vnd.kubernetes.protobuf,application/json", JSON, ""),
    ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", JSON, "Table"),
    ("application/json;as=Table;v=v99;g=meta.k8s.io,application/json", JSON, ""),
    ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", JSON, "PartialObjectMetadataList"),
    ("text/html, application/json;q=0.9", JSON, ""), ("application/yaml;q=0.1, application/json;q=0.2", JSON, ""),
    ("application/json;stream=watch", JSON, ""),
])
def test_what_is_chosen(accept: str, media: str, convert: str) -> None:
    assert of(accept) == (media, convert)


def test_protobuf_alone_is_protobuf() -> None:
    assert of(PROTOBUF) == (PROTOBUF, "")


@pytest.mark.parametrize(("accept", "start"), [
    ("text/plain", "406: Not Acceptable"), ("application/*", "406: Not Acceptable"), ("nonsense", "406: Not Acceptable"),
    ("application/json;as=Table", "only the following media types are accepted"),
    ("application/json;as=Table;v=v9;g=meta.k8s.io", "only the following media types are accepted"),
])
def test_two_ways_to_refuse(accept: str, start: str) -> None:
    with pytest.raises(StatusError) as e:
        parse_accept(accept, (*MEDIA, *STREAMS), CONVERSIONS)
    assert e.value.code == 406 and e.value.message.startswith(start)


def test_reviews_have_metadata_but_no_table() -> None:
    asked = "application/json;as=Table;v=v1;g=meta.k8s.io"
    with pytest.raises(StatusError) as e:
        parse_accept(asked, MEDIA, NO_TABLE)
    assert e.value.code == 406
    assert parse_accept(asked + ",application/json", MEDIA, NO_TABLE).convert == ""
    assert parse_accept(asked.replace("Table", "PartialObjectMetadata"), MEDIA, NO_TABLE).convert == "PartialObjectMetadata"


def test_pretty() -> None:
    assert accept_of(Request("GET", "/", {"pretty": ["true"]}, {})).pretty
    assert accept_of(Request("GET", "/", {"x": ["1"]}, {"user-agent": "curl/8"})).pretty
    assert not accept_of(Request("GET", "/", {"pretty": ["false"]}, {"user-agent": "curl/8"})).pretty


def test_yaml_is_quoted_as_go_does():
    assert to_yaml({"a": "2020-01-01T00:00:00Z", "b": "1e3", "c": "x: y", "d": "l1\nl2", "e": "", "f": "y", "g": "it's"}).decode() == (
        'a: "2020-01-01T00:00:00Z"\nb: "1e3"\nc: \'x: y\'\nd: |-\n  l1\n  l2\ne: ""\nf: "y"\ng: it\'s\n')

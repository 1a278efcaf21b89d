"""Negotiate: which representation a client asks for and sends. Accept and Content-Type in, an Accept tuple or a 406/415 out.

Two layers refuse with two texts, as upstream: the router (a media type it has never heard of) and the endpoint (a conversion it
cannot do). JSON is what we speak; a client that puts protobuf first gets JSON as long as JSON is anywhere in its list.
Upstream: apiserver endpoints/handlers/negotiation, go-restful's Produces and Consumes; RFC 9110 section 12.5.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any, NamedTuple

from kubern.model.object import Object
from kubern.model.request import Request
from kubern.model.status import StatusError

JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
MEDIA = (JSON, YAML, PROTOBUF)
STREAMS = (f"{JSON};stream=watch", f"{PROTOBUF};stream=watch")
_META_VERSIONS = ("v1", "v1beta1")
NO_TABLE = frozenset({"PartialObjectMetadata", "PartialObjectMetadataList"})       # of what upstream gave no columns: reviews, bindings, evictions, tokens
CONVERSIONS = NO_TABLE | {"Table"}


class Accept(NamedTuple):
    media: str                 # JSON, YAML or PROTOBUF
    convert: str = ""          # "", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"
    version: str = "v1"        # of meta.k8s.io, for a conversion
    pretty: bool = False
    stream: str = ""


PLAIN = Accept(JSON)


def not_acceptable(accepted: tuple[str, ...]) -> StatusError:
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {', '.join(accepted)}")


def router_not_acceptable(available: tuple[str, ...]) -> StatusError:
    return StatusError(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {', '.join(available)}", {})


def unsupported_media_type(accepted: tuple[str, ...] = MEDIA) -> StatusError:
    return StatusError(415, "UnsupportedMediaType",
                       f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}")


def router_unsupported_media_type() -> StatusError:
    return StatusError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})


def _clauses(header: str) -> list[tuple[str, dict[str, str]]]:
    """Media ranges with their parameters, best first."""
    out = []
    for i, clause in enumerate(header.split(",")):
        media, _, rest = clause.partition(";")
        media = media.strip().lower()
        if not media:
            continue
        if media == "*":
            media = "*/*"
        params: dict[str, str] = {}
        q = 1.0
        for part in rest.split(";"):
            k, sep, v = part.partition("=")
            k, v = k.strip(), v.strip().strip('"')
            if not sep:
                continue
            if k == "q":
                try:
                    q = float(v)
                except ValueError:
                    q = 1.0
            else:
                params[k] = v
        if q > 0:
            stars = media.count("*")
            out.append((-q, stars, -len(params), i, media, params))
    out.sort(key=lambda c: c[:4])
    return [(c[4], c[5]) for c in out]


@lru_cache(maxsize=512)
def parse_accept(header: str, available: tuple[str, ...], conversions: frozenset[str]) -> Accept:
    """What to answer with; raises StatusError 406. `available` is what the router prints, `conversions` the kinds it can be shown as."""
    if not header:
        return PLAIN
    types = {a.partition(";")[0] for a in available}
    if not any(m.partition(";")[0].strip() in types or m.partition(";")[0].strip() == "*/*" for m in header.split(",")):
        raise router_not_acceptable(available)
    only_protobuf = False
    for media, params in _clauses(header):
        for have in MEDIA:
            if media not in (have, "*/*") and not (media.endswith("/*") and have.startswith(media[:-1])):
                continue
            accept = _options(have, params, conversions)
            if accept is None:
                continue
            if have == PROTOBUF and media == have:
                only_protobuf = True     # kept as the last resort: JSON further down the list wins
                continue
            return accept
    if only_protobuf:
        return Accept(PROTOBUF)
    raise not_acceptable(MEDIA)


def _options(media: str, params: dict[str, str], conversions: frozenset[str]) -> Accept | None:
    kind, group, version = params.get("as", ""), params.get("g", ""), params.get("v", "")
    stream = params.get("stream", "")
    if stream and (stream != "watch" or media == YAML):
        return None
    if params.get("sv"):
        return None
    pretty = params.get("pretty") == "1"
    if not kind and not group and not version:
        return Accept(media, pretty=pretty, stream=stream)
    if kind not in conversions or group != "meta.k8s.io" or version not in _META_VERSIONS:
        return None
    return None if kind == "Table" and media == PROTOBUF else Accept(media, kind, version, pretty, stream)


def accept_of(request: Request, watchable: bool = False, conversions: frozenset[str] = CONVERSIONS) -> Accept:
    """The representation this request asks for; `watchable`: a list endpoint, whose router knows the streaming types too."""
    header = request.headers.get("accept", "")
    if header in ("", JSON, "*/*") and not request.query:
        return PLAIN
    accept = parse_accept(header, (*MEDIA, *STREAMS) if watchable else MEDIA, conversions)
    if not accept.pretty and wants_pretty(request):
        accept = accept._replace(pretty=True)
    return accept


def wants_pretty(request: Request) -> bool:
    if "pretty" in request.query:
        value = request.param("pretty")
        if value:
            return value in ("1", "t", "T", "true", "TRUE", "True")
    agent = request.headers.get("user-agent", "")
    return agent.startswith(("curl", "Wget", "Mozilla/5.0"))


def content_type_of(request: Request) -> str:
    """JSON, YAML or PROTOBUF of a body that is an object; raises StatusError 415."""
    header = request.headers.get("content-type", "")
    if not header or header == JSON:
        return JSON
    media, _, rest = header.partition(";")
    media = media.strip().lower()
    if media in MEDIA and (not rest.strip() or "=" in rest):
        return media
    raise unsupported_media_type()


def to_yaml(obj: Object) -> bytes:
    import yaml

    text: str = yaml.dump(obj, Dumper=_dumper(), default_flow_style=False, sort_keys=True, allow_unicode=True)
    return text.encode()


@cache
def _dumper() -> Any:
    """PyYAML's, with go-yaml's way of quoting: text of several lines as a block, double quotes around what would be read as something else."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    resolver = yaml.SafeDumper(None)
    newer_numbers = re.compile(r"[-+]?\d+[eE][-+]?\d+|0o[0-7]+|[yYnN]")

    def text(dumper: Any, value: str) -> Any:
        style = None
        if "\n" in value:
            style = "|"
        elif newer_numbers.fullmatch(value) or (value not in ("=", "<<")
                                                and resolver.resolve(yaml.ScalarNode, value, (True, False)) != "tag:yaml.org,2002:str"):
            style = '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper

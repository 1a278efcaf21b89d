"""Definitions: the CustomResourceDefinitions of the Gateway API as far as kubern serves it: GatewayClass, Gateway, HTTPRoute, ReferenceGrant.

`kubern manifest gateway-api | kubectl apply -f -`. Written for here, from the facts of the standard channel (names, types, defaults, limits, rules);
whoever wants all kinds and descriptions applies the project's own instead, which work as well.
Source: Gateway API v1, API specification.
"""

from __future__ import annotations

from typing import Any

from kubern.ingress.references import GROUP
from kubern.model.object import Object

Schema = dict[str, Any]
DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_NAME = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
TOKEN = r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
WAITING = {"lastTransitionTime": "1970-01-01T00:00:00Z", "message": "Waiting for controller", "reason": "Pending", "status": "Unknown"}


def text(most: int = 253, least: int = 1, pattern: str = "", **more: Any) -> Schema:
    return {"type": "string", "maxLength": most, **({"minLength": least} if least else {}), **({"pattern": pattern} if pattern else {}), **more}


def choice(*values: str, **more: Any) -> Schema:
    return {"type": "string", "enum": list(values), **more}


def number(low: int = 1, high: int = 65535, **more: Any) -> Schema:
    return {"type": "integer", "format": "int32", "minimum": low, "maximum": high, **more}


def record(required: str = "", rules: tuple[tuple[str, str], ...] = (), default: Any = None, odd: dict[str, Schema] | None = None, **fields: Schema) -> Schema:
    """An object; `required`: names of fields, `rules`: (CEL, message), `odd`: fields whose names Python keeps for itself."""
    out: Schema = {"type": "object", "properties": {**fields, **(odd or {})}}
    if required:
        out["required"] = required.split()
    if default is not None:
        out["default"] = default
    return out | _rules(rules)


def _rules(rules: tuple[tuple[str, str], ...]) -> Schema:
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]} if rules else {}


def rows(items: Schema, most: int, least: int = 0, key: str = "", rules: tuple[tuple[str, str], ...] = (), **more: Any) -> Schema:
    """A list: a map by `key`, else atomic."""
    kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]} if key else {"x-kubernetes-list-type": "atomic"}
    return {"type": "array", "items": items, "maxItems": most, **({"minItems": least} if least else {}), **kind, **more} | _rules(rules)


def mapping(value: Schema, most: int) -> Schema:
    return {"type": "object", "additionalProperties": value, "maxProperties": most}


# ---- what several kinds have

NAME, SPACE = text(), text(63, 1, f"^{DNS_LABEL}$")
GROUP_NAME = text(253, 0, f"^$|^{DNS_NAME}$")
KIND_NAME = text(63, 1, "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
SECTION = text(253, 1, f"^{DNS_NAME}$")
HOSTNAME = text(253, 1, rf"^(\*\.)?{DNS_NAME}$")
EXACT_HOSTNAME = text(253, 1, f"^{DNS_NAME}$")
CONTROLLER_NAME = text(253, 1, rf"^{DNS_NAME}\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$")
CONDITION = record(
    "lastTransitionTime message reason status type", lastTransitionTime={"type": "string", "format": "date-time"}, message=text(32768, 0),
    observedGeneration={"type": "integer", "format": "int64", "minimum": 0}, reason=text(1024, 1, "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    status=choice("True", "False", "Unknown"), type=text(316, 0, rf"^({DNS_NAME}/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"))
SELECTOR = {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
    "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
    "matchExpressions": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "object", "required": ["key", "operator"], "properties": {
        "key": {"type": "string"}, "operator": {"type": "string"},
        "values": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}}}}}}}
PARAMETERS = record("group kind name", group=GROUP_NAME, kind=KIND_NAME, name=NAME)
ROUTE_KIND = record("kind", group={**GROUP_NAME, "default": GROUP}, kind=KIND_NAME)
PARENT = record("name", group={**GROUP_NAME, "default": GROUP}, kind={**KIND_NAME, "default": "Gateway"}, namespace=SPACE, name=NAME, sectionName=SECTION,
                port=number())


def waiting(*types: str) -> list[dict[str, str]]:
    return [{**WAITING, "type": t} for t in types]


def conditions(*pending: str, least: int = 0) -> Schema:
    return rows(CONDITION, 8, least, key="type") | ({"default": waiting(*pending)} if pending else {})


def definition(plural: str, kind: str, spec: Schema, status: Schema | None, columns: list[dict[str, Any]], *versions: str, short: str = "",
               namespaced: bool = True) -> Object:
    """`versions`: the first is stored."""
    properties = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec}
    if status is not None:
        properties["status"] = status
    one = {"served": True, "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": properties}},
           "additionalPrinterColumns": [*columns, {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
           **({"subresources": {"status": {}}} if status is not None else {})}
    names = {"categories": ["gateway-api"], "kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(),
             **({"shortNames": [short]} if short else {})}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {
        "name": f"{plural}.{GROUP}", "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/2466", f"{GROUP}/channel": "standard"}},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced" if namespaced else "Cluster",
                 "versions": [{"name": v, "storage": v == versions[0], **one} for v in versions]}}


def column(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "type": "string", "jsonPath": path}


# ---- GatewayClass and Gateway

def gateway_class() -> Object:
    controller = {**CONTROLLER_NAME, **_rules((("self == oldSelf", "Value is immutable"),))}
    spec = record("controllerName", controllerName=controller, description=text(64, 0), parametersRef=record(
        "group kind name", group=GROUP_NAME, kind=KIND_NAME, name=NAME, namespace=SPACE))
    status = record(default={"conditions": waiting("Accepted")}, conditions=conditions("Accepted"),
                    supportedFeatures=rows(record("name", name={"type": "string"}), 64, key="name"))
    return definition("gatewayclasses", "GatewayClass", spec, status, [
        column("Controller", ".spec.controllerName"), column("Accepted", '.status.conditions[?(@.type=="Accepted")].status')], "v1", "v1beta1",
        short="gc", namespaced=False)


def gateway() -> Object:
    secret = record("name", group={**GROUP_NAME, "default": ""}, kind={**KIND_NAME, "default": "Secret"}, name=NAME, namespace=SPACE)
    tls = record(rules=(("self.mode == 'Terminate' ? size(self.certificateRefs) > 0 || size(self.options) > 0 : true",
                         "certificateRefs or options must be specified when mode is Terminate"),),
                 mode=choice("Terminate", "Passthrough", default="Terminate"), certificateRefs=rows(secret, 64), options=mapping(text(4096, 0), 16))
    listener = record(
        "name port protocol", name=SECTION, hostname=HOSTNAME, port=number(), tls=tls,
        protocol=text(255, 1, rf"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|{DNS_NAME}\/[A-Za-z0-9]+$"),
        allowedRoutes=record(default={"namespaces": {"from": "Same"}}, kinds=rows(ROUTE_KIND, 8), namespaces=record(
            default={"from": "Same"}, odd={"from": choice("All", "Selector", "Same", default="Same")}, selector=SELECTOR)))
    listeners = rows(listener, 64, 1, key="name", rules=(
        ("self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)", "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']"),
        ("self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
         "tls mode must be Terminate for protocol HTTPS"),
        ("self.all(l, (l.protocol == 'TLS' ? has(l.tls) && has(l.tls.mode) && l.tls.mode != '' : true))", "tls mode must be set for protocol TLS"),
        ("self.all(l, l.protocol in ['TCP', 'UDP']  ? (!has(l.hostname) || l.hostname == '') : true)",
         "hostname must not be specified for protocols ['TCP', 'UDP']"),
        ("self.all(l1, self.exists_one(l2, l1.name == l2.name))", "Listener name must be unique within the Gateway"),
        ("self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? "
         "l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
         "Combination of port, protocol and hostname must be unique for each listener")))
    address_type = text(253, 1, rf"^Hostname|IPAddress|NamedAddress|{DNS_NAME}\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$", default="IPAddress")
    infrastructure = record(labels=mapping(text(63, 0, "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"), 8), annotations=mapping(text(4096, 0), 16),
                            parametersRef=PARAMETERS)
    spec = record("gatewayClassName listeners", gatewayClassName=NAME, listeners=listeners, infrastructure=infrastructure,
                  addresses=rows(record(type=address_type, value=text(253, 0)), 16))
    shown = record("attachedRoutes conditions name", name=SECTION, attachedRoutes={"type": "integer", "format": "int32"},
                   supportedKinds=rows(ROUTE_KIND, 8), conditions=conditions())
    status = record(default={"conditions": waiting("Accepted", "Programmed")}, conditions=conditions("Accepted", "Programmed"),
                    addresses=rows(record("value", type=address_type, value=text()), 16), listeners=rows(shown, 64, key="name"))
    return definition("gateways", "Gateway", spec, status, [
        column("Class", ".spec.gatewayClassName"), column("Address", ".status.addresses[*].value"),
        column("Programmed", '.status.conditions[?(@.type=="Programmed")].status')], "v1", "v1beta1", short="gtw")


# ---- HTTPRoute

def http_route() -> Object:
    by = choice("Exact", "RegularExpression", default="Exact")
    slash = {"path": {"type": "PathPrefix", "value": "/"}}
    plain = "(self.type in ['Exact','PathPrefix']) ? "
    path = record(
        default=slash["path"], type=choice("Exact", "PathPrefix", "RegularExpression", default="PathPrefix"), value=text(1024, 0, default="/"), rules=(
            (f"{plain}self.value.startsWith('/') : true", "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']"),
            *((f"{plain}!self.value.contains('{odd}') : true", f"must not contain '{odd}' when type one of ['Exact', 'PathPrefix']")
              for odd in ("//", "/./", "/../", "%2f", "%2F", "#")),
            *((f"{plain}!self.value.endsWith('{odd}') : true", f"must not end with '{odd}' when type one of ['Exact', 'PathPrefix']")
              for odd in ("/..", "/.")),
            (plain + "self.value.matches(r\"\"\"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$\"\"\") : true",
             "must only contain valid characters (matching ^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$) for types ['Exact', 'PathPrefix']")))
    match = record(path=path, method=choice(*METHODS), headers=rows(record("name value", name=text(256, 1, TOKEN), type=by, value=text(4096)), 16, key="name"),
                   queryParams=rows(record("name value", name=text(256, 1, TOKEN), type=by, value=text(1024)), 16, key="name"))
    exclusive = ("RequestRedirect", "URLRewrite", "RequestHeaderModifier", "ResponseHeaderModifier")
    filters = rows(_filter(), 16, rules=(
        ("!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'URLRewrite'))",
         "May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both"),
        *((f"self.filter(f, f.type == '{t}').size() <= 1", f"{t} filter cannot be repeated") for t in exclusive)))
    duration = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
    timeouts = record(request=duration, backendRequest=duration, rules=((
        "!(has(self.request) && has(self.backendRequest) && duration(self.request) != duration('0s') && "
        "duration(self.backendRequest) > duration(self.request))", "backendRequest timeout cannot be longer than request timeout"),))
    rule = record(name=SECTION, matches=rows(match, 64, default=[slash]), filters=filters, timeouts=timeouts,
                  backendRefs=rows(_backend(filters=filters, weight=number(0, 1_000_000, default=1)), 16), rules=(
                      ("(has(self.backendRefs) && size(self.backendRefs) > 0) ? (!has(self.filters) || self.filters.all(f, !has(f.requestRedirect))): true",
                       "RequestRedirect filter must not be used together with backendRefs"),
                      *((f"(has(self.filters) && self.filters.exists_one(f, has(f.{f}) && has(f.{f}.path) && f.{f}.path.type == 'ReplacePrefixMatch' && "
                         f"has(f.{f}.path.replacePrefixMatch))) ? ((size(self.matches) != 1 || !has(self.matches[0].path) || "
                         "self.matches[0].path.type != 'PathPrefix') ? false : true) : true",
                         f"When using {t} filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified")
                        for f, t in (("requestRedirect", "RequestRedirect"), ("urlRewrite", "URLRewrite")))))
    counts = " + ".join(f"(self.size() > {i} ? self[{i}].matches.size() : 0)" for i in range(16))
    every = rows(rule, 16, 1, default=[{"matches": [slash]}], rules=((
        f"{counts} <= 128", "While 16 rules and 64 matches per rule are allowed, the total number of matches across all rules in a route must be "
        "less than 128"),))
    spec = record(parentRefs=rows(PARENT, 32), hostnames=rows(HOSTNAME, 16), odd={"rules": every})
    said = record("conditions controllerName parentRef", parentRef=PARENT, controllerName=CONTROLLER_NAME, conditions=conditions(least=1))
    return definition("httproutes", "HTTPRoute", spec, record("parents", parents=rows(said, 32)), [column("Hostnames", ".spec.hostnames")], "v1", "v1beta1")


def _backend(**more: Schema) -> Schema:
    return record("name", group={**GROUP_NAME, "default": ""}, kind={**KIND_NAME, "default": "Service"}, name=NAME, namespace=SPACE, port=number(), **more,
                  rules=(("(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true", "Must have port for Service reference"),))


def _filter() -> Schema:
    header = rows(record("name value", name=text(256, 1, TOKEN), value=text(4096)), 16, key="name")
    change = record(set=header, add=header, remove={"type": "array", "maxItems": 16, "x-kubernetes-list-type": "set", "items": {"type": "string"}})
    path = record("type", type=choice("ReplaceFullPath", "ReplacePrefixMatch"), replaceFullPath=text(1024, 0), replacePrefixMatch=text(1024, 0), rules=tuple(
        pair for type_, f in (("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")) for pair in (
            (f"self.type == '{type_}' ? has(self.{f}) : true", f"{f} must be specified when type is set to '{type_}'"),
            (f"has(self.{f}) ? self.type == '{type_}' : true", f"type must be '{type_}' when {f} is set"))))
    status = {"type": "integer", "enum": [301, 302, 303, 307, 308], "default": 302}
    fraction = record("numerator", numerator={"type": "integer", "format": "int32", "minimum": 0},
                      denominator={"type": "integer", "format": "int32", "minimum": 1, "default": 100},
                      rules=(("self.numerator <= self.denominator", "numerator must be less than or equal to denominator"),))
    kinds = {
        "RequestHeaderModifier": change, "ResponseHeaderModifier": change,
        "RequestMirror": record("backendRef", backendRef=_backend(), percent=number(0, 100), fraction=fraction,
                                rules=(("!(has(self.percent) && has(self.fraction))",
                                        "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter"),)),
        "RequestRedirect": record(scheme=choice("http", "https"), hostname=EXACT_HOSTNAME, path=path, port=number(), statusCode=status),
        "URLRewrite": record(hostname=EXACT_HOSTNAME, path=path),
        "ExtensionRef": record("group kind name", group=GROUP_NAME, kind=KIND_NAME, name=NAME)}
    fields = {t: "urlRewrite" if t == "URLRewrite" else t[0].lower() + t[1:] for t in kinds}
    rules = tuple(pair for t, f in fields.items() for pair in (
        (f"!(has(self.{f}) && self.type != '{t}')", f"filter.{f} must be nil if the filter.type is not {t}"),
        (f"!(!has(self.{f}) && self.type == '{t}')", f"filter.{f} must be specified for {t} filter.type")))
    return record("type", rules=rules, type=choice(*kinds), odd={fields[t]: s for t, s in kinds.items()})


# ---- ReferenceGrant

def reference_grant() -> Object:
    spec = record("from to", odd={"from": rows(record("group kind namespace", group=GROUP_NAME, kind=KIND_NAME, namespace=SPACE), 16, 1)},
                  to=rows(record("group kind", group=GROUP_NAME, kind=KIND_NAME, name=NAME), 16, 1))
    return definition("referencegrants", "ReferenceGrant", spec, None, [], "v1beta1", "v1", short="refgrant")


def definitions() -> list[Object]:
    return [gateway_class(), gateway(), http_route(), reference_grant()]

"""The environment of a container, as pairs: services, envFrom, env, with $(VAR) expanded. Pure; what it refers to comes by `lookup`.

Also the downward API's values, which volumes show too. Raises BadEnv with the words of the waiting message
(CreateContainerConfigError). Upstream: kubelet_pods.go makeEnvironmentVariables, envvars, pkg/fieldpath, expansion.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kubern.model import quantity
from kubern.model.invalid import quote
from kubern.model.object import Object


class BadEnv(Exception):
    """The container cannot be made: a reference leads nowhere."""


Lookup = Callable[[str, str, str], Object | None]    # ("configmaps" | "secrets", namespace, name) -> the object or None


@dataclass(frozen=True, slots=True)
class Values:
    """What the downward API knows beyond the pod: addresses, and what a container without limits may use."""

    pod_ips: tuple[str, ...] = ()
    host_ips: tuple[str, ...] = ()
    allocatable: Mapping[str, str] | None = None


def expand(text: str, *maps: Mapping[str, str]) -> str:
    """$(NAME) from the first map that has it, else left as it is; $$ is $."""
    if "$" not in text:
        return text
    out: list[str] = []
    i, n = 0, len(text)
    while i < n:
        c = text[i]
        if c != "$" or i + 1 >= n:
            out.append(c)
            i += 1
            continue
        after = text[i + 1]
        if after == "$":
            out.append("$")
            i += 2
        elif after == "(":
            end = text.find(")", i + 2)
            if end < 0:
                out.append("$(")
                i += 2
            else:
                name = text[i + 2:end]
                out.append(next((m[name] for m in maps if name in m), f"$({name})"))
                i = end + 1
        else:
            out.append("$" + after)
            i += 2
    return "".join(out)


def service_variables(namespace: str, links: bool, services: Iterable[Object]) -> dict[str, str]:
    """NAME_SERVICE_HOST and its kin: of default/kubernetes always, of the pod's namespace with enableServiceLinks."""
    chosen: dict[str, Object] = {}
    for s in services:
        m = s["metadata"]
        if s["spec"].get("clusterIP") in (None, "", "None"):
            continue
        if m.get("namespace") == "default" and m["name"] == "kubernetes":
            chosen.setdefault(m["name"], s)
        elif links and m.get("namespace") == namespace:
            chosen[m["name"]] = s
    out: dict[str, str] = {}
    for s in chosen.values():
        ip = s["spec"]["clusterIP"]
        ports = s["spec"].get("ports") or []
        if not ports:
            continue
        prefix = _variable(s["metadata"]["name"])
        out[f"{prefix}_SERVICE_HOST"] = ip
        out[f"{prefix}_SERVICE_PORT"] = str(ports[0]["port"])
        host = f"[{ip}]" if ":" in ip else ip
        for i, p in enumerate(ports):
            if p.get("name"):
                out[f"{prefix}_SERVICE_PORT_{_variable(p['name'])}"] = str(p["port"])
            protocol = p.get("protocol") or "TCP"
            url = f"{protocol.lower()}://{host}:{p['port']}"
            if i == 0:
                out[f"{prefix}_PORT"] = url
            one = f"{prefix}_PORT_{p['port']}_{protocol.upper()}"
            out |= {one: url, f"{one}_PROTO": protocol.lower(), f"{one}_PORT": str(p["port"]), f"{one}_ADDR": ip}
    return out


def _variable(name: str) -> str:
    return name.replace("-", "_").upper()


def environment(pod: Object, container: Mapping[str, Any], values: Values, services: Iterable[Object], lookup: Lookup,
                read_file: Callable[[str, str, str], str | None] | None = None) -> dict[str, str]:
    """Name -> value. `read_file(volume, path, key)` answers fileKeyRef."""
    spec = pod["spec"]
    namespace = pod["metadata"].get("namespace") or ""
    service = service_variables(namespace, spec.get("enableServiceLinks", True), services)
    out: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        for field, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            ref = source.get(field)
            if ref is None:
                continue
            data = _data(resource, namespace, ref, lookup)
            for k, v in (data or {}).items():
                out[(source.get("prefix") or "") + k] = v
    for e in container.get("env") or ():
        value = e.get("value") or ""
        if value:
            value = expand(value, out, service)
        elif e.get("valueFrom"):
            found = _from(pod, container, e["valueFrom"], values, namespace, lookup, read_file)
            if found is None:
                continue
            value = found
        out[e["name"]] = value
    for k, v in service.items():
        out.setdefault(k, v)
    return out


def _data(resource: str, namespace: str, ref: Mapping[str, Any], lookup: Lookup) -> dict[str, str] | None:
    """The text data of a config map or secret; None when it is missing and may be."""
    name = ref.get("name") or ""
    obj = lookup(resource, namespace, name)
    if obj is None:
        if ref.get("optional"):
            return None
        raise BadEnv(f"{resource[:-1]} {quote(name)} not found")
    if resource == "secrets":
        return {k: base64.b64decode(v).decode(errors="surrogateescape") for k, v in (obj.get("data") or {}).items()}
    return dict(obj.get("data") or {})


def _from(pod: Object, container: Mapping[str, Any], source: Mapping[str, Any], values: Values, namespace: str, lookup: Lookup,
          read_file: Callable[[str, str, str], str | None] | None) -> str | None:
    if source.get("fieldRef"):
        return field_value(pod, source["fieldRef"]["fieldPath"], values)
    if source.get("resourceFieldRef"):
        return resource_value(pod, container, source["resourceFieldRef"], values)
    for field, resource, kind in (("configMapKeyRef", "configmaps", "ConfigMap"), ("secretKeyRef", "secrets", "Secret")):
        ref = source.get(field)
        if ref is None:
            continue
        data = _data(resource, namespace, ref, lookup)
        if data is None:
            return None
        if ref["key"] not in data:
            if ref.get("optional"):
                return None
            raise BadEnv(f"couldn't find key {ref['key']} in {kind} {namespace}/{ref.get('name') or ''}")
        return data[ref["key"]]
    ref = source.get("fileKeyRef")
    if ref is not None and read_file is not None:
        found = read_file(ref["volumeName"], ref["path"], ref["key"])
        if found is None and not ref.get("optional"):
            raise BadEnv(f"environment variable key {quote(ref['key'])} not found in file {quote(ref['path'])}")
        return found
    return ""


def format_map(m: Mapping[str, str]) -> str:
    """Labels or annotations as the downward API writes them: sorted lines of key="value"."""
    return "\n".join(f"{k}={quote(v)}" for k, v in sorted(m.items()))


def field_value(pod: Object, path: str, values: Values) -> str:
    """A fieldRef. Raises BadEnv."""
    meta, spec = pod["metadata"], pod["spec"]
    if path == "spec.nodeName":
        return spec.get("nodeName") or ""
    if path in ("spec.serviceAccountName", "spec.serviceAccount"):
        return spec.get("serviceAccountName") or ""
    if path == "status.hostIP":
        return values.host_ips[0] if values.host_ips else ""
    if path == "status.hostIPs":
        return ",".join(values.host_ips)
    if path == "status.podIP":
        return values.pod_ips[0] if values.pod_ips else ""
    if path == "status.podIPs":
        return ",".join(values.pod_ips)
    if path.endswith("']") and "['" in path:
        where, key = path[:-2].split("['", 1)
        if where in ("metadata.labels", "metadata.annotations"):
            return (meta.get(where[9:]) or {}).get(key) or ""
        raise BadEnv(f"fieldPath {quote(path)} does not support subscript")
    if path in ("metadata.labels", "metadata.annotations"):
        return format_map(meta.get(path[9:]) or {})
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return meta.get(path[9:]) or ""
    raise BadEnv(f"unsupported fieldPath: {path}")


def resource_value(pod: Object, container: Mapping[str, Any], ref: Mapping[str, Any], values: Values) -> str:
    """A resourceFieldRef, divided and rounded up. Limits that are not set are the node's allocatable."""
    name = ref.get("containerName")
    if name:
        spec = pod["spec"]
        found = next((c for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())) if c["name"] == name), None)
        if found is None:
            raise BadEnv(f"container {name} not found")
        container = found
    where, _, resource = ref["resource"].partition(".")
    if where not in ("limits", "requests") or not (resource in ("cpu", "memory", "ephemeral-storage") or resource.startswith("hugepages-")):
        raise BadEnv(f"unsupported container resource : {ref['resource']}")
    have = container.get("resources") or {}
    text = (have.get(where) or {}).get(resource)
    if text is None and where == "limits":
        text = (pod["spec"].get("resources") or {}).get("limits", {}).get(resource) or (values.allocatable or {}).get(resource)
    amount = quantity.parse(str(text)).amount if text is not None else Fraction(0)
    divisor = quantity.parse(str(ref.get("divisor") or "1")).amount or Fraction(1)
    return str(-(-amount // divisor))

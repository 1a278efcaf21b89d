"""Containers: the rules of ordinary, init and ephemeral containers and of everything inside one.

Generators of errors over the v1 shape, in upstream's order. What a container may do to the host is in pod_security.py.
Upstream: pkg/apis/core/validation (validateContainers and its like), KEP-753 (sidecars), KEP-5307 (restart rules), KEP-1287 (resize).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_found, not_supported, required, too_many
from kubern.model.kinds.labels import messages
from kubern.model.kinds.leeway import Leeway
from kubern.model.kinds.pod_resources import is_sidecar
from kubern.model.kinds.pod_security import security_context
from kubern.model.kinds.references import no_backsteps, object_field, pull_policy, relative_path, resource_field
from kubern.model.kinds.resource_rules import requirements
from kubern.model.object import Object

Errors = Iterator[FieldError]
PROTOCOLS = ("SCTP", "TCP", "UDP")
MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")
RESTART_POLICIES = ("Always", "Never", "OnFailure")
RULES_NEED_POLICY = "must specify restartPolicy when restart rules are used"
ENV_FIELD_PATHS = frozenset({"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
                             "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"})
# In the order of upstream's type: what an ephemeral container must not have.
NOT_EPHEMERAL = ("ports", "resources", "resizePolicy", "restartPolicy", "restartPolicyRules", "livenessProbe", "readinessProbe",
                 "startupProbe", "lifecycle")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What containers need to know of their pod."""

    volumes: Mapping[str, Object]
    claims: Collection[str]
    restart_policy: str
    grace_s: int | None
    os: str | None
    host_users: bool
    leeway: Leeway


def validate_containers(spec: Object, path: str, pod: Surroundings) -> Errors:
    """containers, initContainers and ephemeralContainers of a pod spec at `path`."""
    yield from _ordinary(spec.get("containers") or [], f"{path}.containers", pod)
    if init := spec.get("initContainers"):
        yield from _init(init, spec, f"{path}.initContainers", pod)
    if ephemeral := spec.get("ephemeralContainers"):
        yield from _ephemeral(ephemeral, spec, f"{path}.ephemeralContainers", pod)


def _ordinary(containers: list[Object], path: str, pod: Surroundings) -> Errors:
    if not containers:
        yield required(path)
        return
    seen: set[str] = set()
    for i, c in enumerate(containers):
        here, name = f"{path}[{i}]", c.get("name", "")
        yield from _common(c, here, pod)
        if name in seen:
            yield duplicate(f"{here}.name", name)
        seen.add(name)
        yield from _life(c, here, pod)
        yield from _restart_policy(c, here)
    yield from _host_ports(containers, path)


def _init(containers: list[Object], spec: Object, path: str, pod: Surroundings) -> Errors:
    seen = {c.get("name", "") for c in spec.get("containers") or ()}
    for i, c in enumerate(containers):
        here, name = f"{path}[{i}]", c.get("name", "")
        yield from _common(c, here, pod)
        if c.get("restartPolicy") is None and c.get("restartPolicyRules"):
            yield required(f"{here}.restartPolicy", RULES_NEED_POLICY)
        else:
            yield from _restart_policy(c, here)
        if name in seen:
            yield duplicate(f"{here}.name", name)
        elif name:
            seen.add(name)
        yield from _host_ports([c], path)
        if is_sidecar(c):
            yield from _life(c, here, pod)
        else:
            for field in ("lifecycle", *_PROBES):
                if c.get(field) is not None:
                    yield forbidden(f"{here}.{field}", "may not be set for init containers without restartPolicy=Always")
            if not pod.leeway.init_restart_on_resize:
                for j, p in enumerate(c.get("resizePolicy") or ()):
                    if p.get("restartPolicy") == "RestartContainer":
                        yield invalid(f"{here}.resizePolicy[{j}].restartPolicy", "RestartContainer",
                                      "must not be set to 'RestartContainer' for non-sidecar initContainers")


def _ephemeral(containers: list[Object], spec: Object, path: str, pod: Surroundings) -> Errors:
    others = {c.get("name", "") for which in ("containers", "initContainers") for c in spec.get(which) or ()}
    seen = set(others)
    for i, c in enumerate(containers):
        here, name, target = f"{path}[{i}]", c.get("name", ""), c.get("targetContainerName", "")
        yield from _common(c, here, pod)
        yield from image_spelling(c, here)
        if name in seen:
            yield duplicate(f"{here}.name", name)
        seen.add(name)
        if target and target not in others:
            yield not_found(f"{here}.targetContainerName", target)
        for field in NOT_EPHEMERAL:
            if c.get(field):
                yield forbidden(f"{here}.{field}", "cannot be set for an Ephemeral Container")
        for j, m in enumerate(c.get("volumeMounts") or ()):
            for field in ("subPath", "subPathExpr"):
                if m.get(field):
                    yield forbidden(f"{here}.volumeMounts[{j}].{field}", "cannot be set for an Ephemeral Container")


def _common(c: Object, path: str, pod: Surroundings) -> Errors:
    """What holds for every container."""
    name, policy = c.get("name", ""), c.get("terminationMessagePolicy", "")
    if not name:
        yield required(f"{path}.name")
    elif errors := names.is_dns1123_label(name):
        yield from messages(f"{path}.name", name, errors)
    if not c.get("image"):
        yield required(f"{path}.image")
    if not policy:
        yield required(f"{path}.terminationMessagePolicy")
    elif policy not in MESSAGE_POLICIES:
        yield not_supported(f"{path}.terminationMessagePolicy", policy, MESSAGE_POLICIES)
    if ports := c.get("ports"):
        yield from _ports(ports, f"{path}.ports")
    if env := c.get("env"):
        yield from _env(env, f"{path}.env")
    if sources := c.get("envFrom"):
        yield from _env_from(sources, f"{path}.envFrom")
    mounts, devices = c.get("volumeMounts"), c.get("volumeDevices")
    if mounts:
        yield from _mounts(mounts, devices or [], c, f"{path}.volumeMounts", pod.volumes)
    if devices:
        yield from _devices(devices, mounts or [], f"{path}.volumeDevices", pod.volumes)
    yield from pull_policy(c.get("imagePullPolicy", ""), f"{path}.imagePullPolicy")
    if resources := c.get("resources"):
        yield from requirements(resources, f"{path}.resources", pod.claims, pod.leeway.huge_pages)
    if policies := c.get("resizePolicy"):
        yield from _resize_policy(policies, f"{path}.resizePolicy", pod.restart_policy)
    if (security := c.get("securityContext")) is not None:
        yield from security_context(security, f"{path}.securityContext", pod.host_users)


def image_spelling(c: Object, path: str) -> Errors:
    """Asked of pods only: stored templates may have it wrong."""
    image = c.get("image", "")
    if image != image.strip():
        yield invalid(f"{path}.image", image, "must not have leading or trailing whitespace")


# Ports -------------------------------------------------------------------------------------------------------------------------

def _ports(ports: list[Object], path: str) -> Errors:
    seen: set[str] = set()
    for i, p in enumerate(ports):
        here, name, number, protocol = f"{path}[{i}]", p.get("name", ""), p.get("containerPort", 0), p.get("protocol", "")
        if name:
            if errors := names.is_port_name(name):
                yield from messages(f"{here}.name", name, errors)
            elif name in seen:
                yield duplicate(f"{here}.name", name)
            else:
                seen.add(name)
        if not number:
            yield required(f"{here}.containerPort")
        else:
            yield from messages(f"{here}.containerPort", number, names.is_port_number(number))
        if p.get("hostPort"):
            yield from messages(f"{here}.hostPort", p["hostPort"], names.is_port_number(p["hostPort"]))
        if not protocol:
            yield required(f"{here}.protocol")
        elif protocol not in PROTOCOLS:
            yield not_supported(f"{here}.protocol", protocol, PROTOCOLS)


def _host_ports(containers: list[Object], path: str) -> Errors:
    seen: set[str] = set()
    for i, c in enumerate(containers):
        for j, p in enumerate(c.get("ports") or ()):
            if p.get("hostPort"):
                key = f"{p.get('protocol', '')}/{p.get('hostIP', '')}/{p['hostPort']}"
                if key in seen:
                    yield duplicate(f"{path}[{i}].ports[{j}].hostPort", key)
                seen.add(key)


# Environment -------------------------------------------------------------------------------------------------------------------

def _env(env: list[Object], path: str) -> Errors:
    for i, e in enumerate(env):
        name = e.get("name", "")
        if not name:
            yield required(f"{path}[{i}].name")
        else:
            yield from messages(f"{path}[{i}].name", name, names.is_relaxed_env_var_name(name))
        if (source := e.get("valueFrom")) is not None:
            yield from _env_source(source, e.get("value", ""), f"{path}[{i}].valueFrom")


def _env_source(source: Object, value: str, path: str) -> Errors:
    count = 0
    if (ref := source.get("fieldRef")) is not None:
        count += 1
        yield from object_field(ref, f"{path}.fieldRef", ENV_FIELD_PATHS)
    if (ref := source.get("resourceFieldRef")) is not None:
        count += 1
        yield from resource_field(ref, f"{path}.resourceFieldRef", in_volume=False)
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if (ref := source.get(kind)) is not None:
            count += 1
            yield from _key_ref(ref, f"{path}.{kind}")
    if (ref := source.get("fileKeyRef")) is not None:
        count += 1
        yield from _file_ref(ref, f"{path}.fileKeyRef")
    if not count:
        yield invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
    elif value:
        yield invalid(path, "", "may not be specified when `value` is not empty")
    elif count > 1:
        yield invalid(path, "", "may not have more than one field specified at a time")


def _key_ref(ref: Object, path: str) -> Errors:
    name, key = ref.get("name", ""), ref.get("key", "")
    yield from messages(f"{path}.name", name, names.is_dns1123_subdomain(name))
    if not key:
        yield required(f"{path}.key")
    else:
        yield from messages(f"{path}.key", key, names.is_config_map_key(key))


def _file_ref(ref: Object, path: str) -> Errors:
    key, volume, target = ref.get("key", ""), ref.get("volumeName", ""), ref.get("path", "")
    if not key:
        yield required(f"{path}.key")
    else:
        yield from messages(f"{path}.key", key, names.is_relaxed_env_var_name(key))
    if not volume:
        yield required(f"{path}.volumeName")
    else:
        yield from messages(f"{path}.volumeName", volume, names.is_dns1123_label(volume))
    if not target:
        yield required(f"{path}.path")
    else:
        yield from no_backsteps(target, f"{path}.path")


def _env_from(sources: list[Object], path: str) -> Errors:
    for i, s in enumerate(sources):
        if prefix := s.get("prefix"):
            yield from messages(f"{path}[{i}].prefix", prefix, names.is_relaxed_env_var_name(prefix))
        count = 0
        for kind in ("configMapRef", "secretRef"):
            if (ref := s.get(kind)) is not None:
                count += 1
                name = ref.get("name", "")
                if not name:
                    yield required(f"{path}[{i}].{kind}.name")
                else:
                    yield from messages(f"{path}[{i}].{kind}.name", name, names.name_is_dns_subdomain(name, prefix=True))
        if not count:
            yield invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")
        elif count > 1:
            yield invalid(path, "", "may not have more than one field specified at a time")


# Mounts ------------------------------------------------------------------------------------------------------------------------

def _mounts(mounts: list[Object], devices: list[Object], c: Object, path: str, volumes: Mapping[str, Object]) -> Errors:
    by_device = {d.get("name", ""): d.get("devicePath", "") for d in devices}
    seen: set[str] = set()
    for i, m in enumerate(mounts):
        here, name, target = f"{path}[{i}]", m.get("name", ""), m.get("mountPath", "")
        if not name:
            yield required(f"{here}.name")
        if name not in volumes:
            yield not_found(f"{here}.name", name)
        if not target:
            yield required(f"{here}.mountPath")
        if target in seen:
            yield invalid(f"{here}.mountPath", target, "must be unique")
        seen.add(target)
        if by_device:
            if name in by_device:
                yield invalid(f"{here}.name", name, "must not already exist in volumeDevices")
            if target in by_device.values():
                yield invalid(f"{here}.mountPath", target, "must not already exist as a path in volumeDevices")
        sub, expression = m.get("subPath"), m.get("subPathExpr")
        if sub:
            yield from relative_path(sub, f"{path}.subPath")
        if expression:
            if sub:
                yield invalid(f"{here}.subPathExpr", expression, "subPathExpr and subPath are mutually exclusive")
            yield from relative_path(expression, f"{path}.subPathExpr")
        propagation, recursive = m.get("mountPropagation"), m.get("recursiveReadOnly")
        if propagation is not None:
            if propagation not in ("Bidirectional", "HostToContainer", "None"):
                yield not_supported(f"{path}.mountPropagation", propagation, ("Bidirectional", "HostToContainer", "None"))
            if propagation == "Bidirectional" and not (c.get("securityContext") or {}).get("privileged"):
                yield forbidden(f"{path}.mountPropagation", "Bidirectional mount propagation is available only to privileged containers")
        if recursive is not None:
            yield from _recursive_read_only(recursive, m, f"{path}.recursiveReadOnly")


def _recursive_read_only(recursive: str, mount: Object, path: str) -> Errors:
    if recursive in ("Enabled", "IfPossible"):
        if not mount.get("readOnly"):
            yield forbidden(path, "may only be specified when readOnly is true")
        if mount.get("mountPropagation") not in (None, "None"):
            yield forbidden(path, "may only be specified when mountPropagation is None or not specified")
    elif recursive != "Disabled":
        yield not_supported(path, recursive, ("Disabled", "Enabled", "IfPossible"))


def _devices(devices: list[Object], mounts: list[Object], path: str, volumes: Mapping[str, Object]) -> Errors:
    by_mount = {m.get("name", ""): m.get("mountPath", "") for m in mounts}
    seen: set[str] = set()
    paths: set[str] = set()
    for i, d in enumerate(devices):
        here, name, target = f"{path}[{i}]", d.get("name", ""), d.get("devicePath", "")
        volume = volumes.get(name)
        if not name:
            yield required(f"{here}.name")
        if name in seen:
            yield invalid(f"{here}.name", name, "must be unique")
        if volume is None:
            yield not_found(f"{here}.name", name)
        elif volume.get("persistentVolumeClaim") is None and volume.get("ephemeral") is None:
            yield invalid(f"{here}.name", name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
        if not target:
            yield required(f"{here}.devicePath")
        if target in paths:
            yield invalid(f"{here}.devicePath", target, "must be unique")
        if ".." in target.split("/"):
            yield invalid(f"{here}.devicePath", target, "can not contain backsteps ('..')")
        else:
            paths.add(target)
        if name in by_mount:
            yield invalid(f"{here}.name", name, "must not already exist in volumeMounts")
        if target in by_mount.values():
            yield invalid(f"{here}.devicePath", target, "must not already exist as a path in volumeMounts")
        if name:
            seen.add(name)


# Probes and hooks --------------------------------------------------------------------------------------------------------------

def _life(c: Object, path: str, pod: Surroundings) -> Errors:
    if (lifecycle := c.get("lifecycle")) is not None:
        for moment in ("postStart", "preStop"):
            if (handler := lifecycle.get(moment)) is not None:
                yield from _handler(handler, f"{path}.lifecycle.{moment}", ("exec", "httpGet", "tcpSocket", "sleep"), pod.grace_s)
        if lifecycle.get("stopSignal") is not None:
            yield from _stop_signal(lifecycle["stopSignal"], f"{path}.lifecycle.stopSignal", pod.os)
    for name in _PROBES:
        if (probe := c.get(name)) is not None:
            here = f"{path}.{name}"
            yield from _probe(probe, here)
            if name != "readinessProbe":
                if probe.get("successThreshold") != 1:
                    yield invalid(f"{here}.successThreshold", probe.get("successThreshold", 0), "must be 1")
            elif probe.get("terminationGracePeriodSeconds") is not None:
                yield invalid(f"{here}.terminationGracePeriodSeconds", probe["terminationGracePeriodSeconds"],
                              "must not be set for readinessProbes")


def _probe(probe: Object, path: str) -> Errors:
    yield from _handler(probe, path, ("exec", "httpGet", "tcpSocket", "grpc"), None)
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        if probe.get(field, 0) < 0:
            yield invalid(f"{path}.{field}", probe[field], names.NEGATIVE)
    grace = probe.get("terminationGracePeriodSeconds")
    if grace is not None and grace <= 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than 0")


def _handler(handler: Object, path: str, kinds: tuple[str, ...], grace_s: int | None) -> Errors:
    count = 0
    for kind in kinds:
        action = handler.get(kind)
        if action is None:
            continue
        if count:
            yield forbidden(f"{path}.{kind}", "may not specify more than 1 handler type")
            continue
        count = 1
        here = f"{path}.{kind}"
        if kind == "exec":
            if not action.get("command"):
                yield required(f"{here}.command")
        elif kind == "httpGet":
            yield from _http(action, here)
        elif kind == "sleep":
            seconds = action.get("seconds", 0)
            if grace_s is not None and not 0 <= seconds <= grace_s:
                yield invalid(here, seconds, f"must be non-negative and less than terminationGracePeriodSeconds ({grace_s})")
        else:
            yield from port_or_name(action.get("port", 0), f"{here}.port")
    if not count:
        yield required(path, "must specify a handler type")


def _http(action: Object, path: str) -> Errors:
    if not action.get("path"):
        yield required(f"{path}.path")
    yield from port_or_name(action.get("port", 0), f"{path}.port")
    if action.get("scheme") not in ("HTTP", "HTTPS"):
        yield not_supported(f"{path}.scheme", action.get("scheme", ""), ("HTTP", "HTTPS"))
    for header in action.get("httpHeaders") or ():
        yield from messages(f"{path}.httpHeaders", header.get("name", ""), names.is_http_header_name(header.get("name", "")))


def port_or_name(port: int | str, path: str) -> Errors:
    """A number or the name of a container's port."""
    yield from messages(path, port, names.is_port_name(port) if isinstance(port, str) else names.is_port_number(port))


_LINUX_SIGNALS = ("ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT RTMAX "
                  + " ".join(f"RTMAX-{i}" for i in range(1, 15)) + " RTMIN " + " ".join(f"RTMIN+{i}" for i in range(1, 16))
                  + " SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ")
STOP_SIGNALS = {"linux": frozenset(f"SIG{s}" for s in _LINUX_SIGNALS.split()), "windows": frozenset({"SIGKILL", "SIGTERM"})}


def _stop_signal(signal: str, path: str, os: str | None) -> Errors:
    if os is None:
        yield forbidden(path, "may not be set for containers with empty `spec.os.name`")
    elif os in STOP_SIGNALS and signal not in STOP_SIGNALS[os]:
        yield not_supported(path, signal, STOP_SIGNALS[os])


# Restart and resize policies ---------------------------------------------------------------------------------------------------

def _restart_policy(c: Object, path: str) -> Errors:
    policy, rules = c.get("restartPolicy"), c.get("restartPolicyRules") or []
    if policy is None:
        if not rules:
            return
        yield required(f"{path}.restartPolicy", RULES_NEED_POLICY)
    elif policy not in RESTART_POLICIES:
        yield not_supported(f"{path}.restartPolicy", policy, RESTART_POLICIES)
    if len(rules) > 20:
        yield too_many(f"{path}.restartPolicyRules", len(rules), 20)
    for i, rule in enumerate(rules):
        here, codes = f"{path}.restartPolicyRules[{i}]", rule.get("exitCodes")
        if rule.get("action", "") not in ("Restart", "RestartAllContainers"):
            yield not_supported(f"{here}.action", rule.get("action", ""), ("Restart", "RestartAllContainers"))
        if codes is None:
            yield required(f"{here}.exitCodes", "must be specified")
            continue
        if codes.get("operator", "") not in ("In", "NotIn"):
            yield not_supported(f"{here}.exitCodes.operator", codes.get("operator", ""), ("In", "NotIn"))
        if len(codes.get("values") or ()) > 255:
            yield too_many(f"{here}.exitCodes.values", len(codes["values"]), 255)


def _resize_policy(policies: list[Object], path: str, pod_restart_policy: str) -> Errors:
    seen: set[str] = set()
    for i, p in enumerate(policies):
        name, policy = p.get("resourceName", ""), p.get("restartPolicy", "")
        if name in seen:
            yield duplicate(f"{path}[{i}]", name)
        seen.add(name)
        if not name:
            yield required(path)
        elif name not in ("cpu", "memory"):
            yield not_supported(path, name, ("cpu", "memory"))
        if not policy:
            yield required(path)
        elif policy not in ("NotRequired", "RestartContainer"):
            yield not_supported(path, policy, ("NotRequired", "RestartContainer"))
        if pod_restart_policy == "Never" and policy != "NotRequired":
            yield invalid(path, policy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")

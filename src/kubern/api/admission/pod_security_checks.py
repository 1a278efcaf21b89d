"""The Pod Security Standards as a table: for every check the level, the version from which on it holds, and the test.

A test takes (annotations, pod spec) and gives (reason, detail) of a violation, or None. CHECKS is in upstream's order of messages:
baseline by id, then restricted by id. Some restricted checks stand in for a weaker baseline one.
Upstream: pod-security-admission/policy; KEP-2579, "Pod Security Standards".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from kubern.model.invalid import quote

Spec = dict[str, Any]
Violation = tuple[str, str] | None
Test = Callable[[dict[str, str], Spec], Violation]

BASELINE, RESTRICTED, PRIVILEGED = "baseline", "restricted", "privileged"
NEWEST = 36          # minor version that "latest" means


def containers(spec: Spec) -> Iterator[dict[str, Any]]:
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field) or ()


def _context(holder: dict[str, Any]) -> dict[str, Any]:
    return holder.get("securityContext") or {}


def _quoted(items: Iterable[str]) -> str:
    return ", ".join(f'"{i}"' for i in items)


def _many(one: str, count: int, several: str = "") -> str:
    return one if count == 1 else several or f"{one}s"


def _list(names: list[str]) -> str:
    """`container "a"`, `containers "a", "b"`."""
    return f"{_many('container', len(names))} {_quoted(names)}"


def _bad(spec: Spec, test: Callable[[dict[str, Any]], bool]) -> list[str]:
    return [c.get("name", "") for c in containers(spec) if test(c)]


def _setters(pod: bool, names: list[str]) -> str:
    return " and ".join((["pod"] if pod else []) + ([_list(names)] if names else []))


def _windows(spec: Spec) -> bool:
    return (spec.get("os") or {}).get("name") == "windows"


def _user_namespace(spec: Spec) -> bool:
    return spec.get("hostUsers") is False


# -- baseline

def app_armor(annotations: dict[str, str], spec: Spec) -> Violation:
    values: set[str] = set()

    def bad(holder: dict[str, Any]) -> bool:
        profile = _context(holder).get("appArmorProfile")
        if profile is None or profile.get("type") in ("RuntimeDefault", "Localhost"):
            return False
        values.add(profile.get("type", ""))
        return True

    pod, names = bad(spec), _bad(spec, bad)
    notes = sorted(f"{k}={quote(v)}" for k, v in annotations.items()
                   if k.startswith("container.apparmor.security.beta.kubernetes.io/") and v
                   and v != "runtime/default" and not v.startswith("localhost/"))
    setters = _setters(pod, names)
    if notes:
        setters = " and ".join(filter(None, (setters, _many("annotation", len(notes)))))
    if not setters:
        return None
    found = [*sorted(values), *notes]
    return _many("forbidden AppArmor profile", len(found)), f"{setters} must not set AppArmor profile type to {_quoted(found)}"


DEFAULT_CAPABILITIES = frozenset(("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
                                  "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"))


def capabilities(annotations: dict[str, str], spec: Spec) -> Violation:
    added: set[str] = set()

    def bad(c: dict[str, Any]) -> bool:
        extra = {a for a in (_context(c).get("capabilities") or {}).get("add") or () if a not in DEFAULT_CAPABILITIES}
        added.update(extra)
        return bool(extra)

    names = _bad(spec, bad)
    if not names:
        return None
    return "non-default capabilities", f"{_list(names)} must not include {_quoted(sorted(added))} in securityContext.capabilities.add"


def host_namespaces(annotations: dict[str, str], spec: Spec) -> Violation:
    found = [f"{f}=true" for f in ("hostNetwork", "hostPID", "hostIPC") if spec.get(f)]
    return ("host namespaces", ", ".join(found)) if found else None


def host_path(annotations: dict[str, str], spec: Spec) -> Violation:
    names = [v.get("name", "") for v in spec.get("volumes") or () if v.get("hostPath") is not None]
    return ("hostPath volumes", f"{_many('volume', len(names))} {_quoted(names)}") if names else None


def host_ports(annotations: dict[str, str], spec: Spec) -> Violation:
    ports: set[str] = set()

    def bad(c: dict[str, Any]) -> bool:
        used = {str(p["hostPort"]) for p in c.get("ports") or () if p.get("hostPort")}
        ports.update(used)
        return bool(used)

    names = _bad(spec, bad)
    if not names:
        return None
    return "hostPort", f"{_list(names)} {_many('uses', len(names), 'use')} {_many('hostPort', len(ports))} {', '.join(sorted(ports))}"


def host_probes(annotations: dict[str, str], spec: Spec) -> Violation:
    hosts: set[str] = set()

    def bad(c: dict[str, Any]) -> bool:
        lifecycle = c.get("lifecycle") or {}
        handlers = (c.get("livenessProbe"), c.get("readinessProbe"), c.get("startupProbe"), lifecycle.get("postStart"),
                    lifecycle.get("preStop"))
        used = {h for handler in handlers if handler for kind in ("httpGet", "tcpSocket") if (h := (handler.get(kind) or {}).get("host"))}
        hosts.update(used)
        return bool(used)

    names = sorted(set(_bad(spec, bad)))
    if not names:
        return None
    what = "probe or lifecycle host"
    return what, f"{_list(names)} {_many('uses', len(names), 'use')} {_many(what, len(hosts))} {_quoted(sorted(hosts))}"


def privileged(annotations: dict[str, str], spec: Spec) -> Violation:
    names = _bad(spec, lambda c: bool(_context(c).get("privileged")))
    return ("privileged", f"{_list(names)} must not set securityContext.privileged=true") if names else None


def proc_mount(annotations: dict[str, str], spec: Spec) -> Violation:
    types: set[str] = set()

    def bad(c: dict[str, Any]) -> bool:
        mount = _context(c).get("procMount")
        if mount is None or mount == "Default":
            return False
        types.add(mount)
        return True

    names = _bad(spec, bad)
    return ("procMount", f"{_list(names)} must not set securityContext.procMount to {_quoted(sorted(types))}") if names else None


def proc_mount_unless_user_namespace(annotations: dict[str, str], spec: Spec) -> Violation:
    return None if _user_namespace(spec) else proc_mount(annotations, spec)


def _selinux(types: frozenset[str]) -> Test:
    def test(annotations: dict[str, str], spec: Spec) -> Violation:
        wrong: set[str] = set()
        fields: set[str] = set()

        def bad(holder: dict[str, Any]) -> bool:
            options = _context(holder).get("seLinuxOptions")
            if options is None:
                return False
            ok = True
            if options.get("type", "") not in types:
                wrong.add(options.get("type", ""))
                ok = False
            for field in ("user", "role"):
                if options.get(field):
                    fields.add(field)
                    ok = False
            return not ok

        setters = _setters(bad(spec), _bad(spec, bad))
        if not setters:
            return None
        data = [f"{_many('type', len(wrong))} {_quoted(sorted(wrong))}"] if wrong else []
        data += [f"{f} may not be set" for f in ("user", "role") if f in fields]
        return "seLinuxOptions", f"{setters} set forbidden securityContext.seLinuxOptions: {'; '.join(data)}"
    return test


_SELINUX = ("", "container_t", "container_init_t", "container_kvm_t")
_SECCOMP_POD, _SECCOMP_CONTAINER = "seccomp.security.alpha.kubernetes.io/pod", "container.seccomp.security.alpha.kubernetes.io/"


def seccomp_annotations(annotations: dict[str, str], spec: Spec) -> Violation:
    keys = [_SECCOMP_POD, *(f"{_SECCOMP_CONTAINER}{c.get('name', '')}" for c in containers(spec))]
    bad = sorted({f"{k}={quote(annotations[k])}" for k in keys if k in annotations and annotations[k] not in ("runtime/default", "docker/default")
                  and not annotations[k].startswith("localhost/")})
    return ("seccompProfile", f"forbidden {_many('annotation', len(bad))} {', '.join(bad)}") if bad else None


def _seccomp_type(holder: dict[str, Any]) -> str | None:
    profile = _context(holder).get("seccompProfile")
    return None if profile is None else profile.get("type", "")


def seccomp(annotations: dict[str, str], spec: Spec) -> Violation:
    values: set[str] = set()

    def bad(holder: dict[str, Any]) -> bool:
        kind = _seccomp_type(holder)
        if kind is None or kind in ("Localhost", "RuntimeDefault"):
            return False
        values.add(kind)
        return True

    setters = _setters(bad(spec), _bad(spec, bad))
    if not setters:
        return None
    return "seccompProfile", f"{setters} must not set securityContext.seccompProfile.type to {_quoted(sorted(values))}"


def _sysctls(allowed: frozenset[str]) -> Test:
    def test(annotations: dict[str, str], spec: Spec) -> Violation:
        bad = [s.get("name", "") for s in _context(spec).get("sysctls") or () if s.get("name") not in allowed]
        return ("forbidden sysctls", ", ".join(bad)) if bad else None
    return test


_SYSCTLS_0 = frozenset(("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
                        "net.ipv4.ip_unprivileged_port_start"))
_SYSCTLS_27 = _SYSCTLS_0 | {"net.ipv4.ip_local_reserved_ports"}
_SYSCTLS_29 = _SYSCTLS_27 | {"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
                             "net.ipv4.tcp_keepalive_probes"}
_SYSCTLS_32 = _SYSCTLS_29 | {"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}


def host_process(annotations: dict[str, str], spec: Spec) -> Violation:
    def bad(holder: dict[str, Any]) -> bool:
        return bool((_context(holder).get("windowsOptions") or {}).get("hostProcess"))

    setters = _setters(bad(spec), _bad(spec, bad))
    return ("hostProcess", f"{setters} must not set securityContext.windowsOptions.hostProcess=true") if setters else None


# -- restricted

def _not_on_windows(test: Test) -> Test:
    return lambda annotations, spec: None if _windows(spec) else test(annotations, spec)


def _not_in_user_namespace(test: Test) -> Test:
    return lambda annotations, spec: None if _user_namespace(spec) else test(annotations, spec)


def privilege_escalation(annotations: dict[str, str], spec: Spec) -> Violation:
    names = _bad(spec, lambda c: _context(c).get("allowPrivilegeEscalation") is not False)
    if not names:
        return None
    return "allowPrivilegeEscalation != false", f"{_list(names)} must set securityContext.allowPrivilegeEscalation=false"


def drop_all(annotations: dict[str, str], spec: Spec) -> Violation:
    added: set[str] = set()
    keeping, adding = [], []
    for c in containers(spec):
        caps = _context(c).get("capabilities") or {}
        if "ALL" not in (caps.get("drop") or ()):
            keeping.append(c.get("name", ""))
        extra = {a for a in caps.get("add") or () if a != "NET_BIND_SERVICE"}
        added |= extra
        if extra:
            adding.append(c.get("name", ""))
    details = [f'{_list(keeping)} must set securityContext.capabilities.drop=["ALL"]'] if keeping else []
    if adding:
        details.append(f"{_list(adding)} must not include {_quoted(sorted(added))} in securityContext.capabilities.add")
    return ("unrestricted capabilities", "; ".join(details)) if details else None


FREE_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret")
OTHER_VOLUMES = ("hostPath", "gcePersistentDisk", "awsElasticBlockStore", "gitRepo", "nfs", "iscsi", "glusterfs", "rbd", "flexVolume", "cinder",
                 "cephfs", "flocker", "fc", "azureFile", "vsphereVolume", "quobyte", "azureDisk", "photonPersistentDisk", "portworxVolume",
                 "scaleIO", "storageos")


def volume_types(annotations: dict[str, str], spec: Spec) -> Violation:
    names, types = [], set()
    for v in spec.get("volumes") or ():
        if all(v.get(f) is None for f in FREE_VOLUMES):
            names.append(v.get("name", ""))
            types.add(next((f for f in OTHER_VOLUMES if v.get(f) is not None), "unknown"))
    if not names:
        return None
    what = f"{_many('volume', len(names))} {_quoted(names)} {_many('uses', len(names), 'use')}"
    return "restricted volume types", f"{what} {_many('restricted volume type', len(types))} {_quoted(sorted(types))}"


def non_root(annotations: dict[str, str], spec: Spec) -> Violation:
    pod = _context(spec).get("runAsNonRoot")
    explicit = _bad(spec, lambda c: _context(c).get("runAsNonRoot") is False)
    setters = _setters(pod is False, explicit)
    if setters:
        return "runAsNonRoot != true", f"{setters} must not set securityContext.runAsNonRoot=false"
    implicit = _bad(spec, lambda c: _context(c).get("runAsNonRoot") is None and not pod)
    if implicit:
        return "runAsNonRoot != true", f"pod or {_list(implicit)} must set securityContext.runAsNonRoot=true"
    return None


def root_user(annotations: dict[str, str], spec: Spec) -> Violation:
    setters = _setters(_context(spec).get("runAsUser") == 0, _bad(spec, lambda c: _context(c).get("runAsUser") == 0))
    return ("runAsUser=0", f"{setters} must not set runAsUser=0") if setters else None


def seccomp_set(annotations: dict[str, str], spec: Spec) -> Violation:
    found = seccomp(annotations, spec)
    if found:
        return found
    if _seccomp_type(spec) is not None:
        return None
    names = _bad(spec, lambda c: _seccomp_type(c) is None)
    if not names:
        return None
    return "seccompProfile", f'pod or {_list(names)} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'


class Check(NamedTuple):
    id: str
    level: str
    versions: tuple[tuple[int, Test], ...]       # from which minor version on, in order
    instead_of: str = ""                         # the baseline check it stands in for


CHECKS = (
    Check("appArmorProfile", BASELINE, ((0, app_armor),)),
    Check("capabilities_baseline", BASELINE, ((0, capabilities),)),
    Check("hostNamespaces", BASELINE, ((0, host_namespaces),)),
    Check("hostPathVolumes", BASELINE, ((0, host_path),)),
    Check("hostPorts", BASELINE, ((0, host_ports),)),
    Check("hostProbesAndHostLifecycle", BASELINE, ((34, host_probes),)),
    Check("privileged", BASELINE, ((0, privileged),)),
    Check("procMount", BASELINE, ((0, proc_mount), (35, proc_mount_unless_user_namespace))),
    Check("seLinuxOptions", BASELINE, ((0, _selinux(frozenset(_SELINUX))), (31, _selinux(frozenset((*_SELINUX, "container_engine_t")))))),
    Check("seccompProfile_baseline", BASELINE, ((0, seccomp_annotations), (19, seccomp))),
    Check("sysctls", BASELINE, ((0, _sysctls(_SYSCTLS_0)), (27, _sysctls(_SYSCTLS_27)), (29, _sysctls(_SYSCTLS_29)),
                                (32, _sysctls(_SYSCTLS_32)))),
    Check("windowsHostProcess", BASELINE, ((0, host_process),)),
    Check("allowPrivilegeEscalation", RESTRICTED, ((8, privilege_escalation), (25, _not_on_windows(privilege_escalation)))),
    Check("capabilities_restricted", RESTRICTED, ((22, drop_all), (25, _not_on_windows(drop_all))), "capabilities_baseline"),
    Check("procMount_restricted", RESTRICTED, ((35, proc_mount),), "procMount"),
    Check("restrictedVolumes", RESTRICTED, ((0, volume_types),), "hostPathVolumes"),
    Check("runAsNonRoot", RESTRICTED, ((0, non_root), (35, _not_in_user_namespace(non_root)))),
    Check("runAsUser", RESTRICTED, ((23, root_user), (35, _not_in_user_namespace(root_user)))),
    Check("seccompProfile_restricted", RESTRICTED, ((19, seccomp_set), (25, _not_on_windows(seccomp_set))), "seccompProfile_baseline"),
)


@cache
def standards(level: str, minor: int) -> tuple[Test, ...]:
    """The tests of a level at a version, in order."""
    if level == PRIVILEGED:
        return ()
    minor = min(minor, NEWEST)
    chosen: list[tuple[Check, Test]] = []
    for check in CHECKS:
        if check.level == BASELINE or level == RESTRICTED:
            holding = [test for since, test in check.versions if since <= minor]
            if holding:
                chosen.append((check, holding[-1]))
    replaced = {check.instead_of for check, _ in chosen}
    return tuple(test for check, test in chosen if check.id not in replaced)


def violations(level: str, minor: int, annotations: dict[str, str], spec: Spec) -> list[tuple[str, str]]:
    """(reason, detail) of everything a pod does that the level forbids."""
    return [found for test in standards(level, minor) if (found := test(annotations, spec))]


def detail_of(found: list[tuple[str, str]]) -> str:
    """All violations in one text."""
    return ", ".join(f"{reason} ({detail})" if detail else reason for reason, detail in found)

"""What a pod and its containers may do to the host: security contexts of both, sysctls, profiles, Windows options, operating systems.

Generators of errors over the v1 shape, in upstream's order. Privileged containers are allowed (ALLOW_PRIVILEGED).
Upstream: pkg/apis/core/validation (ValidateSecurityContext, validatePodSpecSecurityContext and their like).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required, too_long
from kubern.model.kinds import sysctls
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.labels import messages
from kubern.model.kinds.leeway import Leeway
from kubern.model.kinds.references import relative_path
from kubern.model.object import Object

Errors = Iterator[FieldError]
PROFILE_TYPES = ("Localhost", "RuntimeDefault", "Unconfined")
SECCOMP_POD = "seccomp.security.alpha.kubernetes.io/pod"
SECCOMP_CONTAINER = "container.seccomp.security.alpha.kubernetes.io/"
APPARMOR_CONTAINER = "container.apparmor.security.beta.kubernetes.io/"


ALLOW_PRIVILEGED = True      # --allow-privileged, as every installer starts the API server


def containers_with_path(spec: Object, path: str) -> Iterator[tuple[Object, str]]:
    """Every container with its path, init containers first: the order of upstream's visitor."""
    for which in ("initContainers", "containers", "ephemeralContainers"):
        for i, c in enumerate(spec.get(which) or ()):
            yield c, f"{path}.{which}[{i}]"


def _user(sc: Object, path: str, *fields: str) -> Errors:
    for field in fields:
        if (uid := sc.get(field)) is not None:
            yield from messages(f"{path}.{field}", uid, names.is_user_id(uid))


# Containers --------------------------------------------------------------------------------------------------------------------

def security_context(sc: Object, path: str, host_users: bool) -> Errors:
    if sc.get("privileged") and not ALLOW_PRIVILEGED:
        yield forbidden(f"{path}.privileged", "disallowed by cluster policy")
    yield from _user(sc, path, "runAsUser", "runAsGroup")
    proc = sc.get("procMount")
    if proc is not None:
        if proc not in ("Default", "Unmasked"):
            yield not_supported(f"{path}.procMount", proc, ("Default", "Unmasked"))
        if host_users and proc == "Unmasked":
            yield invalid(f"{path}.procMount", proc, "`hostUsers` must be false to use `Unmasked`")
    yield from seccomp_profile(sc.get("seccompProfile"), f"{path}.seccompProfile")
    if sc.get("allowPrivilegeEscalation") is False:
        if sc.get("privileged"):
            yield invalid(path, struct("SecurityContext", sc), "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
        if "CAP_SYS_ADMIN" in ((sc.get("capabilities") or {}).get("add") or ()):
            yield invalid(path, struct("SecurityContext", sc),
                          "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
    if (windows := sc.get("windowsOptions")) is not None:
        yield from windows_options(windows, f"{path}.windowsOptions")
    yield from apparmor_profile(sc.get("appArmorProfile"), f"{path}.appArmorProfile")


# Pods --------------------------------------------------------------------------------------------------------------------------

def pod_security_context(spec: Object, path: str, leeway: Leeway) -> Errors:
    """spec.securityContext; `path` is the context's own."""
    sc = spec.get("securityContext")
    if not sc and not spec.get("shareProcessNamespace"):
        return
    sc = sc or {}
    yield from _user(sc, path, "fsGroup", "runAsUser", "runAsGroup")
    for i, gid in enumerate(sc.get("supplementalGroups") or ()):
        yield from messages(f"{path}.supplementalGroups[{i}]", gid, names.is_user_id(gid))
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        yield invalid(f"{path}.shareProcessNamespace", True, "ShareProcessNamespace and HostPID cannot both be enabled")
    if sc.get("sysctls"):
        yield from _sysctls(sc["sysctls"], spec, f"{path}.sysctls", leeway)
    if sc.get("fsGroupChangePolicy") is not None and sc["fsGroupChangePolicy"] not in ("Always", "OnRootMismatch"):
        yield not_supported(f"{path}.fsGroupChangePolicy", sc["fsGroupChangePolicy"], ("Always", "OnRootMismatch"))
    yield from seccomp_profile(sc.get("seccompProfile"), f"{path}.seccompProfile")
    if (windows := sc.get("windowsOptions")) is not None:
        yield from windows_options(windows, f"{path}.windowsOptions")
    yield from apparmor_profile(sc.get("appArmorProfile"), f"{path}.appArmorProfile")
    if sc.get("supplementalGroupsPolicy") is not None and sc["supplementalGroupsPolicy"] not in ("Merge", "Strict"):
        yield not_supported(f"{path}.supplementalGroupsPolicy", sc["supplementalGroupsPolicy"], ("Merge", "Strict"))
    change = sc.get("seLinuxChangePolicy")
    allowed = ("MountOption", "Recursive") if leeway.any_selinux_policy else ("Recursive",)
    if change is not None and change not in allowed:
        yield not_supported(f"{path}.seLinuxChangePolicy", change, allowed)


def _sysctls(given: list[Object], spec: Object, path: str, leeway: Leeway) -> Errors:
    seen: set[str] = set()
    for i, s in enumerate(given):
        name, here = s.get("name", ""), f"{path}[{i}].name"
        if not name:
            yield required(here)
        elif names.size(name) > 253 or not sysctls.is_name(name):
            yield invalid(here, name, f"must have at most 253 characters and match regex ^{sysctls.PATTERN}$")
        elif name in seen:
            yield duplicate(here, name)
        if not leeway.host_sysctls:
            yield from sysctls.host_sysctl(name, bool(spec.get("hostNetwork")), bool(spec.get("hostIPC")), here)
        seen.add(name)


# Profiles ----------------------------------------------------------------------------------------------------------------------

def seccomp_profile(profile: Object | None, path: str) -> Errors:
    if profile is None:
        return
    kind, file = profile.get("type", ""), profile.get("localhostProfile")
    if not kind:
        yield required(f"{path}.type", "type is required when seccompProfile is set")
    elif kind not in PROFILE_TYPES:
        yield not_supported(f"{path}.type", kind, PROFILE_TYPES)
    if kind == "Localhost":
        if file is None:
            yield required(f"{path}.localhostProfile", "must be set when seccomp type is Localhost")
        else:
            yield from relative_path(file, f"{path}.localhostProfile")
    elif file is not None:
        yield invalid(f"{path}.localhostProfile", struct("SeccompProfile", profile), "can only be set when seccomp type is Localhost")


def apparmor_profile(profile: Object | None, path: str) -> Errors:
    if profile is None:
        return
    kind, file = profile.get("type", ""), profile.get("localhostProfile")
    if kind == "Localhost":
        if file is None or file == "":
            yield required(f"{path}.localhostProfile", "must be set when AppArmor type is Localhost")
        elif file != file.strip():
            yield invalid(f"{path}.localhostProfile", file, "must not be padded with whitespace")
        if file is not None and names.size(file) > 4095:
            yield too_long(f"{path}.localhostProfile", 4095)
    elif kind in PROFILE_TYPES:
        if file is not None:
            yield invalid(f"{path}.localhostProfile", file, "can only be set when AppArmor type is Localhost")
    elif not kind:
        yield required(f"{path}.type", "type is required when appArmorProfile is set")
    else:
        yield not_supported(f"{path}.type", kind, PROFILE_TYPES)


def profile_annotations(annotations: dict[str, str], spec: Object, path: str) -> Errors:
    """The deprecated annotations for seccomp and AppArmor, which are still checked."""
    if SECCOMP_POD in annotations:
        yield from _seccomp_annotation(annotations[SECCOMP_POD], f"{path}.{SECCOMP_POD}")
    for key, value in annotations.items():
        if key.startswith(SECCOMP_CONTAINER):
            yield from _seccomp_annotation(value, f"{path}.{key}")
    for key, value in annotations.items():
        if key.startswith(APPARMOR_CONTAINER):
            name = key[len(APPARMOR_CONTAINER):]
            if all(c.get("name", "") != name for c, _ in containers_with_path(spec, "")):
                yield invalid(f"{path}[{key}]", name, "container not found")
            if value not in ("", "runtime/default", "unconfined") and not value.startswith("localhost/"):
                yield invalid(f"{path}[{key}]", value, f'invalid AppArmor profile name: "{value}"')


def _seccomp_annotation(value: str, path: str) -> Errors:
    if value in ("runtime/default", "docker/default", "unconfined"):
        return
    if value.startswith("localhost/"):
        yield from relative_path(value[len("localhost/"):], path)
    else:
        yield invalid(path, value, "must be a valid seccomp profile")


def annotations_match_fields(annotations: dict[str, str], spec: Object, path: str) -> Errors:
    """Where both spellings are used, they must say the same."""
    pod = spec.get("securityContext") or {}
    if pod.get("seccompProfile") is not None and SECCOMP_POD in annotations:
        yield from _match(annotations[SECCOMP_POD], pod["seccompProfile"], f"{path}.securityContext.seccompProfile", "seccomp")
    containers = list(containers_with_path(spec, path))
    for c, here in containers:
        profile = (c.get("securityContext") or {}).get("seccompProfile")
        value = annotations.get(SECCOMP_CONTAINER + c.get("name", ""))
        if profile is not None and value is not None:
            yield from _match(value, profile, f"{here}.securityContext.seccompProfile", "seccomp")
    if (spec.get("os") or {}).get("name") == "windows":
        return
    for c, here in containers:
        profile = (c.get("securityContext") or {}).get("appArmorProfile") or pod.get("appArmorProfile")
        value = annotations.get(APPARMOR_CONTAINER + c.get("name", ""))
        if profile is not None and value is not None:
            yield from _match(value, profile, f"{here}.securityContext.appArmorProfile", "apparmor")


def _match(value: str, profile: Object, path: str, what: str) -> Errors:
    kind = profile.get("type", "")
    same = {"Unconfined": ("unconfined",),
            "RuntimeDefault": ("runtime/default", "docker/default") if what == "seccomp" else ("runtime/default",)}
    if kind in same and value not in same[kind]:
        yield forbidden(f"{path}.type", f"{what} type in annotation and field must match")
    elif kind == "Localhost":
        if not value.startswith("localhost/"):
            yield forbidden(f"{path}.type", f"{what} type in annotation and field must match")
        elif value[len("localhost/"):] != profile.get("localhostProfile"):
            yield forbidden(f"{path}.localhostProfile", f"{what} profile in annotation and field must match")


def apparmor_field(annotation: str) -> Object | None:
    """The profile an AppArmor annotation means."""
    if annotation in ("unconfined", "runtime/default"):
        return {"type": "Unconfined" if annotation == "unconfined" else "RuntimeDefault"}
    if annotation.startswith("localhost/") and annotation != "localhost/":
        return {"type": "Localhost", "localhostProfile": annotation[len("localhost/"):]}
    return None


# User namespaces and hosts -----------------------------------------------------------------------------------------------------

def host_users(spec: Object, path: str, leeway: Leeway) -> Errors:
    if spec.get("hostUsers") is not False:
        return
    if spec.get("hostNetwork") and not leeway.host_network_without_host_users:
        yield forbidden(f"{path}.hostNetwork", "when `hostUsers` is false")
    for field, printed in (("hostPID", "HostPID"), ("hostIPC", "HostIPC")):
        if spec.get(field):
            yield forbidden(f"{path}.{printed}", "when `hostUsers` is false")
    if not leeway.devices_without_host_users:
        for c, here in containers_with_path(spec, path):
            if c.get("volumeDevices"):
                yield forbidden(f"{here}.volumeDevices", "when `hostUsers` is false")


# Windows and Linux -------------------------------------------------------------------------------------------------------------

_control = re.compile(r"[\x00-\x1f\x7f]").search
_net_bios = re.compile(r'[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}').fullmatch
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_domain = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_bad_user = re.compile(r'["/\\:;|=,+*?<>@\[\]]').search


def windows_options(options: Object, path: str) -> Errors:
    if (name := options.get("gmsaCredentialSpecName")) is not None:
        yield from messages(f"{path}.gmsaCredentialSpecName", name, names.is_dns1123_subdomain(name))
    if (spec := options.get("gmsaCredentialSpec")) is not None:
        if not spec:
            yield invalid(f"{path}.gmsaCredentialSpec", spec, "gmsaCredentialSpec cannot be an empty string")
        elif names.size(spec) > 64 * 1024:
            yield invalid(f"{path}.gmsaCredentialSpec", spec, "gmsaCredentialSpec size must be under 64 KiB")
    if (user := options.get("runAsUserName")) is not None:
        yield from messages(f"{path}.runAsUserName", user, _windows_user(user))


def _windows_user(text: str) -> list[str]:
    if not text:
        return ["runAsUserName cannot be an empty string"]
    if _control(text):
        return ["runAsUserName cannot contain control characters"]
    if text.count("\\") > 1:
        return ["runAsUserName cannot contain more than one backslash"]
    domain, slash, user = text.rpartition("\\")
    out = []
    if names.size(domain) >= 256:
        out.append("runAsUserName's Domain length must be under 256 characters")
    if slash and not (_net_bios(domain) or _domain(domain)):
        out.append("runAsUserName's Domain doesn't match the NetBios nor the DNS format")
    if not user:
        out.append("runAsUserName's User cannot be empty")
    elif names.size(user) > 104:
        out.append("runAsUserName's User length must not be longer than 104 characters")
    if user and not user.strip(". "):
        out.append("runAsUserName's User cannot contain only periods or spaces")
    if _bad_user(user):
        out.append('runAsUserName\'s User cannot contain the following characters: "/\\:;|=,+*?<>@[]')
    return out


def host_process(spec: Object, path: str) -> Errors:
    """Windows host-process containers: all or none, and only on the host's network."""
    pod = ((spec.get("securityContext") or {}).get("windowsOptions") or {}).get("hostProcess")
    total = hosts = 0
    for c, here in containers_with_path(spec, path):
        total += 1
        own = ((c.get("securityContext") or {}).get("windowsOptions") or {}).get("hostProcess")
        if pod is not None and own is not None and pod != own:
            yield invalid(f"{here}.securityContext.windowsOptions.hostProcess", own,
                          f"pod hostProcess value must be identical if both are specified, was {'true' if pod else 'false'}")
        hosts += bool(pod if own is None else own)
    if hosts:
        if hosts != total:
            yield invalid(path, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
        if not spec.get("hostNetwork"):
            yield invalid(f"{path}.hostNetwork", False, "hostNetwork must be true if pod contains any hostProcess containers")
        if not ALLOW_PRIVILEGED:
            yield forbidden(path, "hostProcess containers are disallowed by cluster policy")


# In upstream's order: (field, in the security context?)
_NOT_ON_WINDOWS_POD = (("appArmorProfile", True), ("seLinuxOptions", True), ("hostUsers", False), ("hostPID", False), ("hostIPC", False),
                       ("seccompProfile", True), ("fsGroup", True), ("fsGroupChangePolicy", True), ("sysctls", True),
                       ("shareProcessNamespace", False), ("runAsUser", True), ("runAsGroup", True), ("supplementalGroups", True),
                       ("supplementalGroupsPolicy", True), ("seLinuxChangePolicy", True))
_NOT_ON_WINDOWS = ("appArmorProfile", "seLinuxOptions", "seccompProfile", "capabilities", "readOnlyRootFilesystem", "privileged",
                   "allowPrivilegeEscalation", "procMount", "runAsUser", "runAsGroup")
_FLAGS = ("hostPID", "hostIPC", "sysctls")                 # not set when false or empty


def operating_system(spec: Object, path: str) -> Errors:
    """spec.os, and what the other fields may not have on that system."""
    os = spec.get("os")
    if os is None:
        return
    name = os.get("name", "")
    if not name:
        yield required(f"{path}.os.name")
    elif name not in ("linux", "windows"):
        yield not_supported(f"{path}.os", name, ("linux", "windows"))
    elif name == "linux":
        if (spec.get("securityContext") or {}).get("windowsOptions") is not None:
            yield forbidden(f"{path}.securityContext.windowsOptions", "windows options cannot be set for a linux pod")
        for c, here in containers_with_path(spec, path):
            if (c.get("securityContext") or {}).get("windowsOptions") is not None:
                yield forbidden(f"{here}.securityContext.windowsOptions", "windows options cannot be set for a linux pod")
    else:
        for field, inside in _NOT_ON_WINDOWS_POD:
            value = ((spec.get("securityContext") or {}) if inside else spec).get(field)
            if value if field in _FLAGS else value is not None:
                yield forbidden(f"{path}.securityContext.{field}" if inside else f"{path}.{field}", "cannot be set for a windows pod")
        for c, here in containers_with_path(spec, path):
            for field in _NOT_ON_WINDOWS:
                if (c.get("securityContext") or {}).get(field) is not None:
                    yield forbidden(f"{here}.securityContext.{field}", "cannot be set for a windows pod")

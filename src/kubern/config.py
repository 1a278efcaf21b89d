"""Settings of a cluster on this machine: defaults < config file < environment < command line.

The file is YAML with the same names as the flags (`dataDir` or `data-dir` alike); an environment variable is KUBERN_ + the
name in capitals (KUBERN_DATA_DIR). Unknown names are an error that lists the known ones. Not the cluster's state: that is
what lies in the data directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

RUNTIMES = ("containerd", "simulated", "none")
STORES = ("sqlite", "memory")
ROLES = ("api", "controllers", "scheduler", "metrics", "nodes", "autoscaler")


class BadSettings(ValueError):
    """A setting that cannot be used; the message says which and what would do."""


def default_data_dir() -> str:
    """/var/lib/kubern for root, ~/.local/share/kubern for others."""
    return "/var/lib/kubern" if os.geteuid() == 0 else str(Path.home() / ".local/share/kubern")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `kubern up` can be told. Units are last in the names."""

    data_dir: str = ""
    bind: str = "0.0.0.0"
    port: int = 6443
    nodes: int = 0
    runtime: str = "containerd"
    node_prefix: str = "node-"
    roles: str = "all"
    store: str = "sqlite"                       # sqlite | memory | etcd://host:port[,host:port]
    service_cidr: str = "10.96.0.0/16"
    pod_cidr: str = "10.244.0.0/16"
    node_ports: str = "30000-32767"
    cluster_domain: str = "cluster.local"
    load_balancer_pool: str = ""                # "" = the end of the node bridge's subnet; none; or networks and ranges, comma separated
    node_grace_s: float = 50.0                  # node-monitor-grace-period
    log_level: str = "info"
    encryption_config: str = ""                 # file: what is encrypted in the store, and with which keys
    encryption_config_automatic_reload: str = "false"        # true: the file is read again when it changes
    authentication_config: str = ""             # file: an AuthenticationConfiguration: issuers of tokens, who may be anonymous
    authentication_token_webhook_config_file: str = ""       # file: a kubeconfig that leads to who knows further tokens
    authentication_token_webhook_version: str = "v1"
    authentication_token_webhook_cache_ttl: str = "2m"
    authorization_config: str = ""              # file: an AuthorizationConfiguration: who is asked, in which order
    audit_policy_file: str = ""                 # file: what is written to the audit log
    audit_log_path: str = ""                    # file, or - for standard output; "": audit.log in the data directory
    audit_log_maxsize: int = 100                # MB: when the file is put aside and a new one begun
    audit_log_maxbackup: int = 100              # how many put aside are kept; 0: all
    audit_log_maxage: int = 366                 # days they are kept; 0: for ever
    audit_log_compress: str = "false"           # true: those put aside are compressed
    audit_log_format: str = "json"              # json or legacy
    audit_log_truncate_enabled: str = "false"   # true: events larger than the next lose the objects they show
    audit_log_truncate_max_event_size: int = 102_400
    audit_webhook_truncate_enabled: str = "false"
    audit_webhook_truncate_max_event_size: int = 102_400
    audit_webhook_config_file: str = ""         # file: a kubeconfig that leads to who takes audit events as well
    audit_webhook_batch_buffer_size: int = 10_000
    audit_webhook_batch_max_size: int = 400
    audit_webhook_batch_max_wait: str = "30s"
    audit_webhook_batch_throttle_qps: float = 10.0
    audit_webhook_batch_throttle_burst: int = 15
    audit_webhook_initial_backoff: str = "10s"
    node_groups: str = ""                       # groups the autoscaler may size, as JSON (autoscaler/groups.py); "" = no autoscaler
    scheduler_config: str = ""                  # file: a KubeSchedulerConfiguration
    autoscaler: str = ""                        # its timings: scan-interval=10s,scale-down-unneeded-time=10m,…
    sans: str = ""                              # further names and addresses in the serving certificate, comma separated

    @property
    def home(self) -> Path:
        return Path(self.data_dir)


NAMES = tuple(f.name for f in fields(Settings))


def _field_name(given: str) -> str:
    """"dataDir", "data-dir", "DATA_DIR" -> "data_dir"."""
    spaced = "".join("_" + c.lower() if c.isupper() and not given.isupper() else c for c in given)
    return spaced.replace("-", "_").strip("_").lower()


def _coerce(name: str, value: Any, source: str) -> Any:
    kind = next(f.type for f in fields(Settings) if f.name == name)
    if name == "node_groups" and isinstance(value, (list, tuple, dict)):
        return json.dumps(list(value) if not isinstance(value, dict) else [value]) if value else ""
    try:
        if kind == "int":
            return int(value)
        if kind == "float":
            return float(value)
    except (TypeError, ValueError):
        raise BadSettings(f"{source}: {name} must be a number, not {value!r}") from None
    return str(value)


def load(flags: Mapping[str, Any], config_file: str = "", environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from all four sources; `flags` holds only what was given on the command line (None = not given). Raises BadSettings."""
    values: dict[str, Any] = {}
    path = config_file or environ.get("KUBERN_CONFIG", "")
    if not path and os.path.exists("/etc/kubern/config.yaml"):
        path = "/etc/kubern/config.yaml"
    if path:
        import yaml

        try:
            doc = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as e:
            raise BadSettings(f"cannot read the config file {path}: {e}") from None
        if not isinstance(doc, dict):
            raise BadSettings(f"{path} must hold a mapping of settings")
        for k, v in doc.items():
            name = _field_name(str(k))
            if name not in NAMES:
                raise BadSettings(f"{path}: unknown setting {k!r}; known are {', '.join(NAMES)}")
            values[name] = _coerce(name, v, path)
    for name in NAMES:
        v = environ.get("KUBERN_" + name.upper())
        if v is not None:
            values[name] = _coerce(name, v, "KUBERN_" + name.upper())
    for k, v in flags.items():
        if v is not None:
            values[k] = _coerce(k, v, "--" + k.replace("_", "-"))
    return check(replace(Settings(), **values))


def check(s: Settings) -> Settings:
    """The settings with the data directory filled in, or BadSettings."""
    if s.runtime not in RUNTIMES:
        raise BadSettings(f"--runtime must be one of {', '.join(RUNTIMES)}, not {s.runtime!r}")
    if s.node_groups or s.autoscaler:
        from kubern.autoscaler.groups import parse_groups
        from kubern.autoscaler.options import BadGroup, parse_options

        try:
            parse_groups(s.node_groups), parse_options(s.autoscaler)
        except BadGroup as e:
            raise BadSettings(str(e)) from None
    wanted = set(s.roles.split(","))
    if s.roles != "all" and (wanted - set(ROLES) or "api" not in wanted):       # the others reach the API inside this process
        raise BadSettings(f"--roles must be all, or api and some of {', '.join(ROLES[1:])}, not {s.roles!r}")
    if s.store not in STORES and not s.store.startswith("etcd://"):
        raise BadSettings(f"--store must be sqlite, memory or etcd://HOST:PORT, not {s.store!r}")
    if not 0 < s.port < 65536:
        raise BadSettings(f"--port must be between 1 and 65535, not {s.port}")
    if not 0 <= s.nodes <= 5000:
        raise BadSettings(f"--nodes must be between 0 and 5000, not {s.nodes}")
    from kubern.model import pool
    from kubern.model.addresses import networks

    for name in ("service_cidr", "pod_cidr"):
        try:
            networks(getattr(s, name))
        except ValueError as e:
            raise BadSettings(f"--{name.replace('_', '-')}: {e}") from None
    families = [n.version for n in networks(s.pod_cidr)]
    if missing := {n.version for n in networks(s.service_cidr)} - set(families):
        raise BadSettings(f"--pod-cidr needs an IPv{missing.pop()} range too when --service-cidr has one")
    if networks(s.service_cidr)[0].version != families[0]:
        raise BadSettings("--pod-cidr and --service-cidr begin with ranges of different families")

    try:
        pool.parse(s.load_balancer_pool)
    except ValueError as e:
        raise BadSettings(f"--load-balancer-pool: {e}") from None
    if s.store not in ("sqlite", "memory") and not s.store.startswith("etcd://"):
        raise BadSettings(f"--store must be sqlite, memory or etcd://HOST:PORT, not {s.store!r}")
    return replace(s, data_dir=os.path.abspath(s.data_dir or default_data_dir()))

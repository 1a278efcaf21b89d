"""The Table form of apps, batch, policy and autoscaling; see columns_core.py for how TABLES is read."""

from __future__ import annotations

from typing import Any

from kubern.model.kinds.columns_core import (
    CONTAINERS,
    IMAGES,
    Table,
    containers_cells,
    labels_text,
    quantity_text,
    text_column,
)
from kubern.model.kinds.kind import Column
from kubern.model.object import Object, controller_of, group_version
from kubern.model.object import name as name_of
from kubern.model.selector import from_label_selector
from kubern.model.status import StatusError
from kubern.model.table import AGE, NAME, age, human_duration, seconds_of, since


def selector_text(selector: Object | None, empty: str = "<none>", broken: str = "<error>") -> str:
    try:
        return str(from_label_selector(selector)) or empty
    except (StatusError, ValueError):
        return broken


def spec_of(obj: Object) -> Object:
    return obj.get("spec") or {}


def status_of(obj: Object) -> Object:
    return obj.get("status") or {}


def integer(name: str, description: str) -> Column:
    return Column(name, "integer", "", description)


def boolean(name: str, description: str) -> Column:
    return Column(name, "boolean", "", description)


def bool_text(value: bool | None) -> str:
    return "<unset>" if value is None else "True" if value else "False"


# --- apps, batch ------------------------------------------------------------------------------------------------------------------------

DEPLOYMENT = (
    NAME, text_column("Ready", "Number of the pod with ready state"),
    text_column("Up-to-date", "@apps.v1.DeploymentStatus.updatedReplicas"),
    text_column("Available", "@apps.v1.DeploymentStatus.availableReplicas"),
    AGE, CONTAINERS, IMAGES, text_column("Selector", "@apps.v1.DeploymentSpec.selector", 1))


def deployment_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    return [name_of(obj), f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}", status.get("updatedReplicas") or 0,
            status.get("availableReplicas") or 0, age(obj, now_s), *containers_cells(spec.get("template")),
            selector_text(spec.get("selector"), "", "<invalid>")]


REPLICA_SET = (
    NAME, integer("Desired", "@apps.v1.ReplicaSetSpec.replicas"), integer("Current", "@apps.v1.ReplicaSetStatus.replicas"),
    integer("Ready", "@apps.v1.ReplicaSetStatus.readyReplicas"), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@apps.v1.ReplicaSetSpec.selector", 1))


def replica_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    return [name_of(obj), spec.get("replicas") or 0, status.get("replicas") or 0, status.get("readyReplicas") or 0, age(obj, now_s),
            *containers_cells(spec.get("template")), selector_text(spec.get("selector"))]


STATEFUL_SET = (NAME, text_column("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES)


def stateful_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    return [name_of(obj), f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}", age(obj, now_s),
            *containers_cells(spec.get("template"))]


DAEMON_SET = (
    NAME, integer("Desired", "@apps.v1.DaemonSetStatus.desiredNumberScheduled"),
    integer("Current", "@apps.v1.DaemonSetStatus.currentNumberScheduled"), integer("Ready", "@apps.v1.DaemonSetStatus.numberReady"),
    integer("Up-to-date", "@apps.v1.DaemonSetStatus.updatedNumberScheduled"),
    integer("Available", "@apps.v1.DaemonSetStatus.numberAvailable"), text_column("Node Selector", "@core.v1.PodSpec.nodeSelector"),
    AGE, CONTAINERS, IMAGES, text_column("Selector", "@apps.v1.DaemonSetSpec.selector", 1))


def daemon_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    template = spec.get("template") or {}
    counts = [status.get(k) or 0 for k in ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled",
                                           "numberAvailable")]
    return [name_of(obj), *counts, labels_text((template.get("spec") or {}).get("nodeSelector")), age(obj, now_s),
            *containers_cells(template), selector_text(spec.get("selector"))]


CONTROLLER_REVISION = (
    NAME, text_column("Controller", "Controller of the object"), text_column("Revision", "@apps.v1.ControllerRevision.revision"), AGE)


def controller_revision_cells(obj: Object, now_s: float) -> list[Any]:
    owner, text = controller_of(obj), "<none>"
    if owner:
        group, _ = group_version(owner.get("apiVersion") or "")
        kind = (owner.get("kind") or "").lower()
        text = f"{kind}.{group}/{owner.get('name')}" if group else f"{kind}/{owner.get('name')}"
    return [name_of(obj), text, obj.get("revision") or 0, age(obj, now_s)]


JOB = (
    NAME, text_column("Status", "Status of the job."), text_column("Completions", "@batch.v1.JobStatus.succeeded"),
    text_column("Duration", "Time required to complete the job."), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@batch.v1.JobSpec.selector", 1))


def _job_status(obj: Object) -> str:
    first: dict[str, str] = {}
    for c in status_of(obj).get("conditions") or ():
        first.setdefault(c.get("type"), c.get("status"))
    for type_ in ("Complete", "Failed"):
        if first.get(type_) == "True":
            return type_
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return next((t for t in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if first.get(t) == "True"), "Running")


def job_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    done, parallelism = status.get("succeeded") or 0, spec.get("parallelism") or 0
    if spec.get("completions") is not None:
        completions = f"{done}/{spec['completions']}"
    else:
        completions = f"{done}/1 of {parallelism}" if parallelism > 1 else f"{done}/1"
    start = seconds_of(status["startTime"]) if status.get("startTime") else None
    end = seconds_of(status["completionTime"]) if status.get("completionTime") else None
    duration = "" if start is None else human_duration((now_s if end is None else end) - start)
    return [name_of(obj), _job_status(obj), completions, duration, age(obj, now_s), *containers_cells(spec.get("template")),
            selector_text(spec.get("selector"))]


CRON_JOB = (
    NAME, text_column("Schedule", "@batch.v1.CronJobSpec.schedule"), text_column("Timezone", "@batch.v1.CronJobSpec.timeZone"),
    boolean("Suspend", "@batch.v1.CronJobSpec.suspend"), integer("Active", "@batch.v1.CronJobStatus.active"),
    text_column("Last Schedule", "@batch.v1.CronJobStatus.lastScheduleTime"), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@batch.v1.JobSpec.selector", 1))


def cron_job_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    last = status.get("lastScheduleTime")
    zone = spec.get("timeZone")
    return [name_of(obj), spec.get("schedule") or "", "<none>" if zone is None else zone, bool_text(spec.get("suspend")),
            len(status.get("active") or ()), since(last, now_s) if last else "<none>", age(obj, now_s),
            *containers_cells(job.get("template")), selector_text(job.get("selector"))]


# --- policy, autoscaling ----------------------------------------------------------------------------------------------------------------

POD_DISRUPTION_BUDGET = (
    NAME, text_column("Min Available", "The minimum number of pods that must be available."),
    text_column("Max Unavailable", "The maximum number of pods that may be unavailable."),
    integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."), AGE)


def pod_disruption_budget_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    low, high = spec.get("minAvailable"), spec.get("maxUnavailable")
    return [name_of(obj), "N/A" if low is None else str(low), "N/A" if high is None else str(high),
            status_of(obj).get("disruptionsAllowed") or 0, age(obj, now_s)]


HORIZONTAL_POD_AUTOSCALER = (
    NAME, text_column("Reference", "@autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef"),
    text_column("Targets", "@autoscaling.v2.HorizontalPodAutoscalerSpec.metrics"),
    text_column("MinPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas"),
    text_column("MaxPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas"),
    text_column("Replicas", "@autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas"), AGE)
_SOURCES = {"External": "external", "Pods": "pods", "Object": "object", "Resource": "resource", "ContainerResource": "containerResource"}


def _metric_text(spec: Object, status: Object | None) -> str:
    type_ = spec.get("type") or ""
    field = _SOURCES.get(type_)
    if field is None:
        return "<unknown type>"
    source = spec.get(field) or {}
    target = source.get("target") or {}
    found = (status or {}).get(field)
    now = (found or {}).get("current") or {}
    average = target.get("averageValue")
    if type_ in ("External", "Object"):
        if average is not None:
            have = now.get("averageValue")
            return f"{'<unknown>' if have is None else quantity_text(have)}/{quantity_text(average)} (avg)"
        return f"{'<unknown>' if found is None else quantity_text(now.get('value'))}/{quantity_text(target.get('value'))}"
    if type_ == "Pods":
        return f"{'<unknown>' if found is None else quantity_text(now.get('averageValue'))}/{quantity_text(average)}"
    name = source.get("name") or ""
    if average is not None:
        return f"{name}: {'<unknown>' if found is None else quantity_text(now.get('averageValue'))}/{quantity_text(average)}"
    have, want = now.get("averageUtilization"), target.get("averageUtilization")
    return f"{name}: {'<unknown>' if have is None else f'{have}%'}/{'<auto>' if want is None else f'{want}%'}"


def horizontal_pod_autoscaler_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    target = spec.get("scaleTargetRef") or {}
    statuses = status.get("currentMetrics") or ()
    texts = [_metric_text(m, statuses[i] if i < len(statuses) else None) for i, m in enumerate(spec.get("metrics") or ())]
    metrics = ", ".join(texts[:2]) + (f" + {len(texts) - 2} more..." if len(texts) > 2 else "") if texts else "<none>"
    low = spec.get("minReplicas")
    return [name_of(obj), f"{target.get('kind') or ''}/{target.get('name') or ''}", metrics, "<unset>" if low is None else str(low),
            spec.get("maxReplicas") or 0, status.get("currentReplicas") or 0, age(obj, now_s)]


SCALE = (
    text_column("Name", "@meta.v1.ObjectMeta.name"), integer("Desired", "@autoscaling.v1.ScaleSpec.replicas"),
    integer("Available", "@autoscaling.v1.ScaleStatus.replicas"), AGE)


def scale_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), spec_of(obj).get("replicas") or 0, status_of(obj).get("replicas") or 0, age(obj, now_s)]


TABLES: dict[tuple[str, str], Table] = {
    ("apps", "Deployment"): (DEPLOYMENT, deployment_cells),
    ("apps", "ReplicaSet"): (REPLICA_SET, replica_set_cells),
    ("apps", "StatefulSet"): (STATEFUL_SET, stateful_set_cells),
    ("apps", "DaemonSet"): (DAEMON_SET, daemon_set_cells),
    ("apps", "ControllerRevision"): (CONTROLLER_REVISION, controller_revision_cells),
    ("batch", "Job"): (JOB, job_cells),
    ("batch", "CronJob"): (CRON_JOB, cron_job_cells),
    ("policy", "PodDisruptionBudget"): (POD_DISRUPTION_BUDGET, pod_disruption_budget_cells),
    ("autoscaling", "HorizontalPodAutoscaler"): (HORIZONTAL_POD_AUTOSCALER, horizontal_pod_autoscaler_cells),
    ("autoscaling", "Scale"): (SCALE, scale_cells),
}

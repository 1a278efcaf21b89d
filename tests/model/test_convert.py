"""Conversions lose nothing on the way there and back."""

from kubern.model.convert import CONDITIONS, METRICS, from_storage, to_storage
from kubern.model.resources import by_path

HPA_V1 = by_path[("autoscaling", "v1", "horizontalpodautoscalers")]
HPA_V2 = by_path[("autoscaling", "v2", "horizontalpodautoscalers")]
EVENTS = by_path[("events.k8s.io", "v1", "events")]


def hpa(**spec):
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, **spec},
            "status": {"desiredReplicas": 2, "conditions": [{"type": "AbleToScale", "status": "True"}], "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "10m"}}}]}}


def test_autoscaler_there_and_back():
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
    pods = {"type": "Pods", "pods": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}},
                                     "target": {"type": "AverageValue", "averageValue": "5"}}}
    stored = hpa(metrics=[pods, cpu], behavior={"scaleDown": {"selectPolicy": "Max", "stabilizationWindowSeconds": 60, "policies": [
        {"type": "Pods", "value": 1, "periodSeconds": 15}]}})
    shown = from_storage(stored, HPA_V1)
    assert shown["spec"]["targetCPUUtilizationPercentage"] == 70
    assert shown["status"]["currentCPUUtilizationPercentage"] == 40
    assert shown["metadata"]["annotations"][METRICS] == (
        '[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"5","selector":{"matchLabels":{"a":"b"}}}}]')
    assert shown["metadata"]["annotations"][CONDITIONS].startswith('[{"type":"AbleToScale","status":"True"')
    again = to_storage(shown, HPA_V1)
    assert again["apiVersion"] == "autoscaling/v2"
    assert again["metadata"] == {"name": "h"}
    assert again["spec"] == stored["spec"]
    assert again["status"]["currentMetrics"] == stored["status"]["currentMetrics"]


def test_autoscaler_without_metrics_gets_cpu_80():
    v1 = {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
          "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3}}
    assert to_storage(v1, HPA_V1)["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80


def test_v2_drops_annotations_of_v1():
    obj = hpa()
    obj["metadata"]["annotations"] = {METRICS: "x", "a": "b"}
    assert to_storage(obj, HPA_V2)["metadata"]["annotations"] == {"a": "b"}


def test_events():
    new = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "note": "n", "regarding": {"kind": "Pod"},
           "reportingController": "c", "reportingInstance": "i", "eventTime": "2024-01-02T03:04:05.000006Z"}
    stored = to_storage(new, EVENTS)
    assert stored["message"] == "n" and stored["involvedObject"] == {"kind": "Pod"} and stored["reportingComponent"] == "c"
    shown = from_storage(stored, EVENTS)
    assert shown["note"] == "n" and shown["deprecatedSource"] == {} and shown["deprecatedFirstTimestamp"] is None


def test_metrics_of_every_source_there_and_back():
    amount = {"type": "AverageValue", "averageValue": "5"}
    metric = {"name": "m", "selector": {"matchLabels": {"a": "b"}}}
    value = {"type": "Value", "value": "7"}
    metrics = [{"type": "Resource", "resource": {"name": "memory", "target": amount}},
               {"type": "ContainerResource", "containerResource": {
                   "name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 9}}},
               {"type": "Pods", "pods": {"metric": metric, "target": amount}},
               *({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": metric, "target": t}} for t in (value, amount)),
               *({"type": "External", "external": {"metric": metric, "target": t}} for t in (value, amount))]
    current = [{"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": metric, "current": {"value": "3"}}},
               {"type": "External", "external": {"metric": metric, "current": {"value": "0", "averageValue": "3"}}}]
    stored = hpa(metrics=metrics)
    stored["status"]["currentMetrics"] = current
    again = to_storage(from_storage(stored, HPA_V1), HPA_V1)
    assert again["spec"]["metrics"] == metrics and again["status"]["currentMetrics"] == current

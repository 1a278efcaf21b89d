"""The cluster autoscaler: node groups grow when pods find no node and shrink when nodes are not needed. Upstream's cluster-autoscaler, its FAQ.

groups.py      node groups and timings from the settings       providers.py   who makes and removes nodes: units of this machine, simulated ones
run.py         the shell: scan, decide, act                    status.py      the ConfigMap kube-system/cluster-autoscaler-status

What is decided is decided in kubern.scheduler.grow and .shrink, with the scheduler's own filters. Off unless there are groups.
"""

"""The scheduler: which node for which pod. Decisions are pure functions over arrays; run.py is the shell that acts.

pod.py     what scheduling needs of a pod, worked out once          queue.py   who is next, who waits for what
table.py   the node table: numpy arrays, label columns, counters     plugins/   FILTERS and SCORES, one file a plugin
pick.py    filters, then scores: a Decision or a Rejection           preempt.py whom to evict when nothing fits
run.py     mirrors in, bindings out                                  volumes.py, claims.py: storage and devices

Source: upstream's default profile (pkg/scheduler), KEP-624, KEP-895 (topology spread), KEP-3521 (gates), KEP-4247 (queueing hints).
"""

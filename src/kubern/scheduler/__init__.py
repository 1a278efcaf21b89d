"""The scheduler: which node for which pod. Decisions are pure functions over arrays; run.py is the shell that acts.

pod.py     what scheduling needs of a pod, worked out once          queue.py    who is next, who waits for what
table.py   the node table: numpy arrays, label columns, counters     plugins/    FILTERS and SCORES, one file a plugin
pick.py    filters, then scores: a Decision or a Rejection           plain.py    the same, short, for pods of which there are many
preempt.py whom to evict when nothing fits                           volumes.py  storage
claims.py  devices: the plugin; devices.py what there is, allocate.py who gets it, extended.py resources that are devices
profile.py what a configuration changes; configuration.py reads it   why.py      the verdict for people
run.py     the loop; state.py what the mirrors say, bind.py and refuse.py what becomes of a decision, extenders.py who else is asked

Source: upstream's default profile (pkg/scheduler), KEP-624, KEP-895 (topology spread), KEP-3521 (gates), KEP-4247 (queueing hints).
"""

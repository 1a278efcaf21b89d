"""Controller: one row of the controllers' table. A pure decision, what it reads, and what wakes it.

The loop (client/loop.py) calls `reconcile(obj, view, now)` for a key of `resource`, executes the intents it yields and sends each result
back into the generator: the object the server answered, or Failed. A list of intents is executed at once and gives a list of results.
A pass in which something failed is repeated with backoff; a reconcile that wants no repetition for a failure does not exist upstream
either. A key is not looked at again until the mirror has seen the writes of its last pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from kubern.model.object import Key, Object
from kubern.model.view import View

Steps = Generator[Any, Any, None]                                      # yields Intent or a list of them
Keys = Callable[[Object | None, Object | None, View], Iterable[Key]]   # (old, new, view) -> keys; old None: added, new None: gone
Changed = Callable[[Object, Object], bool]                             # (old, new) -> is the change worth a look?
SINGLE: Key = ("", "")                                                 # the one key of a controller that has no resource of its own


class Undecided(Exception):
    """Raised by a reconcile that cannot go on without an answer it did not get: the pass is repeated with backoff."""


def always(old: Object, new: Object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Trigger:
    """Changes of another resource that wake keys of this controller's."""

    resource: str
    keys: Keys
    after_s: float = 0.0               # let changes gather this long


@dataclass(frozen=True, slots=True)
class Controller:
    name: str                          # its service account in kube-system
    resource: str                      # "deployments.apps"; "" = none: reconciled with {"key": key}, SINGLE at least
    reconcile: Callable[[Object, View, float], Steps]
    reads: tuple[str, ...] = ()        # further resources it looks at
    triggers: tuple[Trigger, ...] = ()
    gone: Callable[[Key, View, float], Steps] | None = None            # for a key whose object no longer exists
    changed: Changed = always
    everything: Keys | None = None     # keys of any change of any collection (events left out); the view then knows `find` and `dependents`
    component: str = ""                # source of its events; "" = its name
    user: str = ""                     # acts as this user instead, e.g. "system:kube-controller-manager"
    workers: int = 5                   # keys at the same time
    resync_s: float = 0.0              # look at every key this often; 0 = never
    after_s: float = 0.0               # let changes of a key gather this long
    backoff_first_s: float = 0.005
    backoff_last_s: float = 1000.0

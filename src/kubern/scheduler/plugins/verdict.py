"""What a plugin can say. Masks have one entry a node slot, True where it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A filter's no: these nodes, for this reason. `final`: evicting pods would not help (for all of them, or those of a mask)."""

    bad: Mask
    reason: str
    final: bool | Mask = False


@dataclass(frozen=True, slots=True, eq=False)
class Restrict:
    """A pre-filter's: only these nodes come into question."""

    only: Mask


@dataclass(frozen=True, slots=True)
class Reject:
    """A pre-filter's: no node at all, for this reason."""

    reason: str
    final: bool = False

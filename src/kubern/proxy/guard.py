"""Guard: looks from time to time whether a table still holds what was written, and has it written anew if not.

Whoever flushes a ruleset or deletes a table by hand would take the services of a node away until the next change. What is compared is how many
rules there are and how many elements each set has: half a millisecond of the kernel's time, also with ten thousand services.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from kubern.proxy.netlink import Kernel
from kubern.proxy.nft import NftError
from kubern.proxy.ruleset import Ruleset

log = logging.getLogger(__name__)

LOOK_S = 5.0


class Guard:
    """Of one table (in these nft families). `alone` is held while something is written; nothing is looked at meanwhile."""

    def __init__(self, table: str, families: Iterable[str], rules: Ruleset, kernel: Kernel, again: Callable[[], None]) -> None:
        self.table, self.rules, self.kernel, self.again = table, rules, kernel, again
        self.alone = asyncio.Lock()
        self._own: dict[str, int | None] = dict.fromkeys(families)      # rules of the skeleton, once the whole was written

    def written(self) -> None:
        """The whole was just written. Raises NftError."""
        for family in self._own:
            self._own[family] = self.kernel.contents(family, self.table)[0] - self.rules.sizes(family)[0]

    def intact(self) -> bool:
        """Whether the kernel has what was written last."""
        for family, own in self._own.items():
            if own is None:
                continue
            rules, sets = self.rules.sizes(family)
            try:
                have, counted = self.kernel.contents(family, self.table)
            except NftError:
                return False
            if have != own + rules or any(counted.get(name, n) != n for name, n in sets.items()):
                return False
        return True

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            async with self.alone:
                if not self.intact():
                    log.warning("somebody has changed the table %s; it is written anew", self.table)
                    self.again()

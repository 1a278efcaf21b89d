"""A pool of addresses: networks and ranges, in the order they were written ("10.0.0.0/28,10.0.1.5-10.0.1.9"). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from dataclasses import dataclass

ADDRESSES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Pool:
    """`ranges`: first and last address as numbers."""

    text: str
    ranges: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def has(self, address: str) -> bool:
        try:
            n = int(ipaddress.IPv4Address(address))
        except ValueError:
            return False
        return any(a <= n <= b for a, b in self.ranges)

    def free(self, taken: Container[str]) -> str | None:
        """The first address nobody holds."""
        for a, b in self.ranges:
            for n in range(a, b + 1):
                text = str(ipaddress.IPv4Address(n))
                if text not in taken:
                    return text
        return None


def parse(text: str) -> Pool:
    """Raises ValueError. "" and "none" are the empty pool. Of a network of more than one address the broadcast address is left out."""
    if text in ("", "none"):
        return Pool("")
    ranges = []
    for part in (p.strip() for p in text.split(",")):
        low, dash, high = part.partition("-")
        if dash:
            a, b = int(ipaddress.IPv4Address(low.strip())), int(ipaddress.IPv4Address(high.strip()))
        else:
            net = ipaddress.IPv4Network(part)
            a, b = int(net[0]), int(net[-1]) - (net.num_addresses > 1)
        if b < a:
            raise ValueError(f"{part} ends before it begins")
        ranges.append((a, b))
    if sum(b - a + 1 for a, b in ranges) > ADDRESSES_MAX:
        raise ValueError(f"more than {ADDRESSES_MAX} addresses in {text}")
    return Pool(text, tuple(ranges))

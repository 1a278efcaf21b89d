"""A pool of addresses: networks and ranges of either family, in the order they were written ("10.0.0.0/28,10.0.1.5-10.0.1.9"). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from dataclasses import dataclass

from kubern.model.addresses import Address

ADDRESSES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Pool:
    """`ranges`: first and last address, of one family each."""

    text: str
    ranges: tuple[tuple[Address, Address], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def has(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(a.version == ip.version and int(a) <= int(ip) <= int(b) for a, b in self.ranges)

    def free(self, taken: Container[str], version: int = 4) -> str | None:
        """The first address of the family that nobody holds."""
        for a, b in self.ranges:
            if a.version == version:
                for n in range(int(a), int(b) + 1):
                    text = str(type(a)(n))
                    if text not in taken:
                        return text
        return None


def parse(text: str) -> Pool:
    """Raises ValueError. "" and "none" are the empty pool. Of an IPv4 network of more than one address the broadcast address is left out."""
    if text in ("", "none"):
        return Pool("")
    ranges: list[tuple[Address, Address]] = []
    for part in (p.strip() for p in text.split(",")):
        low, dash, high = part.partition("-")
        if dash:
            a, b = ipaddress.ip_address(low.strip()), ipaddress.ip_address(high.strip())
        else:
            net = ipaddress.ip_network(part)
            a, b = net[0], net[-2 if net.version == 4 and net.num_addresses > 1 else -1]
        if a.version != b.version:
            raise ValueError(f"{part} begins in one family and ends in the other")
        if int(b) < int(a):
            raise ValueError(f"{part} ends before it begins")
        ranges.append((a, b))
    if sum(int(b) - int(a) + 1 for a, b in ranges) > ADDRESSES_MAX:
        raise ValueError(f"more than {ADDRESSES_MAX} addresses in {text}")
    return Pool(text, tuple(ranges))

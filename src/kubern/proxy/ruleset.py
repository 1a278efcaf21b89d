"""Ruleset: nftables content as data, and what changes between two of them as nft text. Pure.

A Part is what one owner (a service port, or the whole policy) contributes. Elements of shared sets may come from several owners;
the smallest owner's value counts, so the outcome never depends on the order of arrival. Only what changed is written: the cost of an
update is that of the change. Syntax: nft(8); nft 1.0.6 needs ";" before "}" on one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Name = tuple[str, str]                     # (family, set or chain): ("ip", "services"); the table is the renderer's
Element = tuple[str, str, str]             # (family, set, key)


@dataclass(frozen=True, slots=True)
class Part:
    """`elements`: value by element, "" in sets; `chains`: rules in order; `sets`: declarations; `shared`: chains that stay for ever."""

    elements: Mapping[Element, str] = field(default_factory=dict)
    chains: Mapping[Name, tuple[str, ...]] = field(default_factory=dict)
    sets: Mapping[Name, str] = field(default_factory=dict)
    shared: Mapping[Name, tuple[str, ...]] = field(default_factory=dict)


EMPTY = Part()


@dataclass(slots=True)
class Delta:
    """A change, in the order in which it must be written."""

    new_sets: dict[Name, str] = field(default_factory=dict)
    chains: dict[Name, tuple[str, ...]] = field(default_factory=dict)      # new or changed
    new_chains: set[Name] = field(default_factory=set)
    removed: list[tuple[Element, str]] = field(default_factory=list)
    added: dict[Element, str] = field(default_factory=dict)
    old_chains: list[Name] = field(default_factory=list)
    old_sets: list[Name] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new_sets or self.chains or self.removed or self.added or self.old_chains or self.old_sets)

    def text(self, table: str) -> str:
        """One transaction for `nft -f -`."""
        out = [f"add set {f} {table} {n} {{ {d} }}" for (f, n), d in self.new_sets.items()]
        for f, n in self.chains:
            out.append(f"add chain {f} {table} {n}")
            if (f, n) not in self.new_chains:
                out.append(f"flush chain {f} {table} {n}")
        for (f, n), rules in self.chains.items():
            out += [f"add rule {f} {table} {n} {r}" for r in rules]
        out += _element_lines("delete", table, ((e, "") for e, _ in self.removed))
        out += _element_lines("add", table, self.added.items())
        for f, n in self.old_chains:
            out.append(f"flush chain {f} {table} {n}")
        out += [f"delete chain {f} {table} {n}" for f, n in self.old_chains]
        out += [f"delete set {f} {table} {n}" for f, n in self.old_sets]
        return "\n".join(out) + "\n" if out else ""


def _element_lines(verb: str, table: str, elements: Iterable[tuple[Element, str]]) -> list[str]:
    groups: dict[Name, list[str]] = {}
    for (f, s, key), value in elements:
        groups.setdefault((f, s), []).append(f"{key} : {value}" if value else key)
    return [f"{verb} element {f} {table} {s} {{ {', '.join(keys)} }}" for (f, s), keys in groups.items()]


class Ruleset:
    """All parts by owner, and the merged state. `update` says what changes; nothing is applied here."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self._elements: dict[Element, dict[str, str]] = {}
        self._chains: dict[Name, tuple[str, ...]] = {}
        self._sets: dict[Name, str] = {}
        self._sizes: dict[str, tuple[int, dict[str, int]]] = {}       # by family, until the next change

    @property
    def sets(self) -> Mapping[Name, str]:
        """Declarations of the sets that owners brought along."""
        return self._sets

    def update(self, changes: Mapping[str, Part | None]) -> Delta:
        """Replaces the parts of some owners (None or EMPTY takes an owner away) and returns the whole change."""
        self._sizes.clear()
        delta = Delta()
        touched: dict[Element, str | None] = {}               # element -> effective value before
        gone_chains: set[Name] = set()
        gone_sets: set[Name] = set()
        for owner, new in changes.items():
            old = self.parts.get(owner, EMPTY)
            new = new or EMPTY
            if new == old:
                continue
            for e in old.elements:
                if e not in new.elements:
                    touched.setdefault(e, self._value(e))
                    values = self._elements[e]
                    del values[owner]
                    if not values:
                        del self._elements[e]
            for e, value in new.elements.items():
                if old.elements.get(e) != value or e not in old.elements:
                    touched.setdefault(e, self._value(e))
                    self._elements.setdefault(e, {})[owner] = value
            gone_chains |= old.chains.keys() - new.chains.keys()
            gone_sets |= old.sets.keys() - new.sets.keys()
            for name, declaration in new.sets.items():
                gone_sets.discard(name)
                if name not in self._sets:
                    self._sets[name] = delta.new_sets[name] = declaration
            for source in (new.shared, new.chains):
                for name, rules in source.items():
                    gone_chains.discard(name)
                    if self._chains.get(name) != rules:
                        if name not in self._chains:
                            delta.new_chains.add(name)
                        self._chains[name] = delta.chains[name] = rules
            if new is EMPTY:
                self.parts.pop(owner, None)
            else:
                self.parts[owner] = new
        for e, before in touched.items():
            after = self._value(e)
            if after == before:
                continue
            if before is not None:
                delta.removed.append((e, before))
            if after is not None:
                delta.added[e] = after
        for name in sorted(gone_chains):
            del self._chains[name]
            delta.old_chains.append(name)
        for name in sorted(gone_sets):
            del self._sets[name]
            delta.old_sets.append(name)
        return delta

    def _value(self, e: Element) -> str | None:
        values = self._elements.get(e)
        if not values:
            return None
        return next(iter(values.values())) if len(values) == 1 else values[min(values)]

    def everything(self) -> Delta:
        """The change from nothing to the present state, for a table that was just made anew."""
        return Delta(new_sets=dict(self._sets), chains=dict(self._chains), new_chains=set(self._chains),
                     added={e: v for e in self._elements if (v := self._value(e)) is not None})

    def sizes(self, family: str) -> tuple[int, dict[str, int]]:
        """(how many rules the chains have, how many elements each set has that is not empty) of one family."""
        found = self._sizes.get(family)
        if found is None:
            rules = sum(len(rules) for (f, _), rules in self._chains.items() if f == family)
            found = self._sizes[family] = rules, Counter(e[1] for e in self._elements if e[0] == family)
        return found

    def elements(self, family: str, set_: str) -> dict[str, str]:
        """Key -> value of one set, for tests and trace.py."""
        return {e[2]: self._value(e) or "" for e in self._elements if e[:2] == (family, set_)}

    def chain(self, family: str, name: str) -> tuple[str, ...]:
        return self._chains.get((family, name), ())

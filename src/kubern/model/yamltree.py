"""YAML bodies: the text as a JSON tree, as upstream's YAML-to-JSON conversion makes it.

In: bytes of YAML (first document). Out: dicts with sorted keys, and the duplicate-key complaint of the strict form. YAML 1.1 scalars: y, yes, on
are booleans, 0777 is octal, 1e3 is 1000. Aliases are counted, so that a small text cannot become a huge tree.
Behaviour: sigs.k8s.io/yaml over go-yaml v2 (a port of libyaml, whose messages PyYAML's C parser shares).
"""

from __future__ import annotations

import base64
import re
from typing import Any

import yaml

from kubern.model.gojson import Float

NODES_MAX = 400_000          # values in one document, aliases expanded
DEPTH_MAX = 250              # what the JSON encoder takes; objects have 60 at most
_DEEP = re.compile(rf"^[ \-?:]{{{DEPTH_MAX // 2}}}", re.MULTILINE)      # block style: a level costs a column, or two levels do
_TRUE = {"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"}
_FALSE = {"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"}
_NULL = {"", "~", "null", "Null", "NULL"}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z", re.ASCII)
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]*|[1-9][0-9]*)\Z", re.ASCII)
_TAGGED = re.compile(r"(?:[-+]?[0-9][0-9_]*(?:\.[0-9]*)?|yes|no|true|false|on|off|null|~)\Z", re.ASCII | re.IGNORECASE)   # "!!str 5"


class YAMLFault(ValueError):
    """Not YAML, or not what JSON can say; str() is upstream's message, "yaml: …"."""


def parse(body: bytes) -> tuple[Any, str]:
    """(tree, complaint about duplicate keys or ""). Raises YAMLFault."""
    text = body.decode("utf-8", "replace").lstrip("\ufeff")
    try:
        if _DEEP.search(text) or text.count("[") + text.count("{") > DEPTH_MAX:
            _check_depth(text)
        loader = yaml.CSafeLoader(text)
        try:
            node = loader.get_node() if loader.check_node() else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as e:
        raise YAMLFault(_message(e)) from None
    except (yaml.YAMLError, ValueError) as e:
        raise YAMLFault(f"yaml: {getattr(e, 'reason', None) or e}") from None
    except RecursionError:
        raise YAMLFault("yaml: exceeded max depth") from None
    if node is None:
        return None, ""
    budget = [NODES_MAX]
    duplicates: list[str] = []
    try:
        tree = _value(node, 0, budget, duplicates)
    except RecursionError:
        raise YAMLFault("yaml: exceeded max depth") from None
    return tree, ("yaml: unmarshal errors:\n" + "\n".join("  " + d for d in duplicates)) if duplicates else ""


def _check_depth(text: str) -> None:
    """Composing recurses in C and would overrun the stack; events come one after the other."""
    loader, depth = yaml.CSafeLoader(text), 0
    try:
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > DEPTH_MAX:
                    raise YAMLFault("yaml: exceeded max depth")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.DocumentEndEvent):
                return
    finally:
        loader.dispose()


def _message(e: yaml.MarkedYAMLError) -> str:
    scanner = isinstance(e, yaml.scanner.ScannerError)
    line = 0
    for mark in (e.context_mark, e.problem_mark):
        if mark is not None and mark.line:
            line = mark.line + (1 if scanner else 0)
            break
    if isinstance(e, yaml.composer.ComposerError):
        anchor = re.search(r"'([^']*)'|\"([^\"]*)\"", e.problem or "")
        if "undefined alias" in (e.problem or "") and anchor:
            return f"yaml: unknown anchor '{anchor.group(1) or anchor.group(2)}' referenced"
    return f"yaml: {f'line {line}: ' if line else ''}{e.problem or e.context or 'unknown problem parsing YAML content'}"


def _value(node: yaml.Node, depth: int, budget: list[int], duplicates: list[str]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise YAMLFault("yaml: document contains excessive aliasing")
    if depth > DEPTH_MAX:
        raise YAMLFault("yaml: exceeded max depth")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(v, depth + 1, budget, duplicates) for v in node.value]
    out: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for k, v in node.value:
        if not isinstance(k, yaml.ScalarNode):
            raise YAMLFault("yaml: invalid map key: map[interface {}]interface {}")
        if not k.style and k.value == "<<":
            for source in v.value if isinstance(v, yaml.SequenceNode) else [v]:
                if not isinstance(source, yaml.MappingNode):
                    raise YAMLFault("yaml: map merge requires map or sequence of maps as the value")
                inner = _value(source, depth + 1, budget, duplicates)
                for name, value in inner.items():
                    merged.setdefault(name, value)
            continue
        key = _key(_scalar(k))
        if key in out:
            duplicates.append(f'line {k.start_mark.line + 1}: key "{key}" already set in map')
        out[key] = _value(v, depth + 1, budget, duplicates)
    out = {**merged, **out}
    return dict(sorted(out.items()))


def _key(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return value if isinstance(value, str) else getattr(value, "text", None) or str(value)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    tag = node.tag
    if tag == "tag:yaml.org,2002:binary":
        try:
            return base64.b64decode(text).decode("utf-8", "replace")
        except ValueError:
            raise YAMLFault("yaml: !!binary value contains invalid base64 data") from None
    if node.style or (tag == "tag:yaml.org,2002:str" and _TAGGED.match(text)):
        return text
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text[0] in "+-.0123456789":
        number = _number(text)
        if number is not None:
            return number
    return text


def _number(text: str) -> Any:
    if text.lower() in (".inf", "+.inf", "-.inf", ".nan"):
        raise YAMLFault("json: unsupported value: " + {".nan": "NaN", "-.inf": "-Inf"}.get(text.lower(), "+Inf"))
    plain = text.replace("_", "")
    m = _INT.match(plain)
    if m:
        sign, digits = (-1, plain[1:]) if plain[0] == "-" else (1, plain.lstrip("+"))
        low = digits.lower()
        if low.startswith("0x"):
            n = int(low[2:], 16)
        elif low.startswith("0b"):
            n = int(low[2:], 2)
        elif low.startswith("0o"):
            n = int(low[2:] or "0", 8)
        elif low.startswith("0") and len(low) > 1:
            n = int(low, 8)
        elif len(low) > 400:
            return text
        else:
            n = int(low)
        n *= sign
        if -(1 << 63) <= n < 1 << 64:
            return n
        return _float(float(n))
    if _FLOAT.match(plain):
        return _float(float(plain))
    return None


def _float(f: float) -> Any:
    """A float as Go's JSON writes it: whole numbers without a point."""
    if f == int(f) and abs(f) < 1e21 if abs(f) < 1e300 else False:
        return int(f)
    return Float(re.sub(r"e([+-])0(\d)\Z", r"e\1\2", repr(f)))

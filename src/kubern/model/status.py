"""Status: the one family of errors. Raised where the fact is known, turned into a response at the boundary (api/handle.py).

Words and codes: apimachinery api/errors; API conventions, "Response Status Kind".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kubern.model.invalid import FieldError, aggregate
from kubern.model.object import Object


class StatusError(Exception):
    """An API failure: HTTP code, machine-readable reason, message for people, details and headers."""

    def __init__(self, code: int, reason: str, message: str, details: dict[str, Any] | None = None,
                 headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details, self.headers = code, reason, message, details, tuple(headers)

    def status(self) -> Object:
        """The Status object that goes over the wire."""
        out: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        if self.reason:
            out["reason"] = self.reason
        if self.details is not None:
            out["details"] = self.details
        out["code"] = self.code
        return out


def _details(group: str, resource: str, name: str = "", **more: Any) -> dict[str, Any]:
    d = {"name": name, "group": group, "kind": resource, **more}
    return {k: v for k, v in d.items() if v not in ("", None)}


def qualified(group: str, resource: str) -> str:
    """GroupResource as upstream prints it: "deployments.apps", "pods"."""
    return f"{resource}.{group}" if group else resource


def not_found(group: str, resource: str, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{qualified(group, resource)} "{name}" not found', _details(group, resource, name))


def already_exists(group: str, resource: str, name: str) -> StatusError:
    return StatusError(409, "AlreadyExists", f'{qualified(group, resource)} "{name}" already exists', _details(group, resource, name))


def conflict(group: str, resource: str, name: str, why: str) -> StatusError:
    return StatusError(409, "Conflict", f'Operation cannot be fulfilled on {qualified(group, resource)} "{name}": {why}',
                       _details(group, resource, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def forbidden(group: str, resource: str, name: str, why: str) -> StatusError:
    if name:
        text = f'{qualified(group, resource)} "{name}" is forbidden: {why}'
    elif resource:
        text = f"{qualified(group, resource)} is forbidden: {why}"
    else:
        text = f"forbidden: {why}"
    return StatusError(403, "Forbidden", text, _details(group, resource, name))


def invalid(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> StatusError:
    """422 with one cause a field error; the message joins them as upstream's NewInvalid does."""
    causes = [{"reason": e.type, "message": e.body(), "field": e.field} for e in errors]
    qualified_kind = f"{kind}.{group}" if group else kind
    message = f'{qualified_kind} "{name}" is invalid' + (f": {aggregate(e.text() for e in errors)}" if errors else "")
    return StatusError(422, "Invalid", message, _details(group, kind, name, causes=causes or None))


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def internal(message: str) -> StatusError:
    return StatusError(500, "InternalError", f"Internal error occurred: {message}", {"causes": [{"message": message}]})


def gone(message: str) -> StatusError:
    """410 Expired: the revision asked for is compacted away."""
    return StatusError(410, "Expired", message)


def unavailable(message: str) -> StatusError:
    return StatusError(503, "ServiceUnavailable", message)

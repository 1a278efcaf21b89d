"""gRPC without generated code: messages described as rows of a table, unary calls and small services on unix sockets.

In: MESSAGES tables, name -> fields (name, number, type). A type is a scalar, "map" (string to string), "map:X" (string to message X), a
message of the table, or any of these with "*" for repeated. Used for the plugin protocols of the kubelet; CRI has its own descriptor (cri.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Fields = tuple[tuple[str, int, str], ...]
Messages = Mapping[str, Fields]
Classes = Mapping[str, Any]
Method = Callable[[Any], Awaitable[Any]]

SCALARS = {"double": 1, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12}
MESSAGE, REPEATED, SINGLE = 11, 3, 1
CALL_TIMEOUT_S = 120.0


def define(package: str, messages: Messages) -> Classes:
    """The message classes of a table."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    f = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")

    def typed(field: Any, kind: str) -> None:
        if kind in SCALARS:
            field.type = SCALARS[kind]
        else:
            field.type, field.type_name = MESSAGE, f".{package}.{kind}"

    for name, fields in messages.items():
        m = f.message_type.add(name=name)
        for field_name, number, text in fields:
            kind = text.rstrip("*")
            of_map, _, value = kind.partition(":")
            one = m.field.add(name=field_name, number=number, label=REPEATED if text.endswith("*") or of_map == "map" else SINGLE)  # type: ignore[arg-type]
            if of_map == "map":
                entry = m.nested_type.add(name="".join(p.capitalize() for p in field_name.split("_")) + "Entry")
                entry.options.map_entry = True
                for key, n, inner in (("key", 1, "string"), ("value", 2, value or "string")):
                    typed(entry.field.add(name=key, number=n, label=SINGLE), inner)  # type: ignore[arg-type]
                kind = f"{name}.{entry.name}"
            typed(one, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(f)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{n}")) for n in messages}


def channel(socket: str) -> Any:
    import grpc.aio

    return grpc.aio.insecure_channel(f"unix://{socket}", options=[("grpc.use_local_subchannel_pool", 1)])


async def call(socket: str, method: str, request: Any, answer: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """One unary call on a unix socket; `answer` is the class of the answer. Raises grpc.aio.AioRpcError."""
    async with channel(socket) as c:
        return await c.unary_unary(method, request_serializer=lambda m: m.SerializeToString(),
                                   response_deserializer=answer.FromString)(request, timeout=timeout_s)


def go_error(e: Any) -> str:
    """A failed call in Go's words."""
    return f"rpc error: code = {e.code().name.title().replace('_', '')} desc = {e.details()}"


async def serve(path: str, services: Mapping[str, Mapping[str, tuple[Any, Method]]]) -> Any:
    """A started server on a fresh socket: service -> method -> (class of the request, coroutine function). The caller stops it."""
    import grpc
    import grpc.aio

    def handler(takes: Any, method: Method) -> Any:
        async def run(request: Any, context: Any) -> Any:
            try:
                return await method(request)
            except LookupError as e:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(e))
            except ValueError as e:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        return grpc.unary_unary_rpc_method_handler(run, takes.FromString, lambda m: m.SerializeToString())

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = grpc.aio.server()
    for service, methods in services.items():
        rows = {name: handler(takes, method) for name, (takes, method) in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, rows),))
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    os.chmod(path, 0o660)
    return server

"""Protobuf messages from a table, one a line: `Name: NUMBER FIELD TYPE, …`. `*TYPE` is repeated, `TYPE|` belongs to the message's oneof.

No generated code pins a protobuf release. A map is a repeated message of key (1) and value (2), which is what lies on the wire.
"""

from __future__ import annotations

from typing import Any


def classes(package: str, table: str) -> dict[str, Any]:
    """A class for every line of the table."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    F = descriptor_pb2.FieldDescriptorProto
    scalars = {"bytes": F.TYPE_BYTES, "int64": F.TYPE_INT64, "uint64": F.TYPE_UINT64, "int32": F.TYPE_INT32, "bool": F.TYPE_BOOL, "string": F.TYPE_STRING}
    file = descriptor_pb2.FileDescriptorProto(name=f"kubern/{package}.proto", package=package, syntax="proto3")
    names = []
    for line in table.strip().splitlines():
        name, _, fields = line.partition(":")
        names.append(name)
        message = file.message_type.add(name=name)
        if "|" in fields:
            message.oneof_decl.add(name="one_of")
        for text in filter(None, fields.strip().split(", ")):
            number, field, kind = text.split()
            f = message.field.add(name=field, number=int(number), label=F.LABEL_REPEATED if kind[0] == "*" else F.LABEL_OPTIONAL)
            bare = kind.strip("*|")
            if bare in scalars:
                f.type = scalars[bare]
            else:
                f.type, f.type_name = F.TYPE_MESSAGE, f".{package}.{bare}"
            if kind[-1] == "|":
                f.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{n}")) for n in names}

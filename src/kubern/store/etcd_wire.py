"""The few messages of etcd's v3 API that the store speaks, as a table; classes are made from it when first asked for.

Field numbers: etcd api/etcdserverpb/rpc.proto, api/mvccpb/kv.proto.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kubern.store.messages import classes

_TABLE = """
KeyValue: 1 key bytes, 2 create_revision int64, 3 mod_revision int64, 4 version int64, 5 value bytes, 6 lease int64
Event: 1 type int32, 2 kv KeyValue, 3 prev_kv KeyValue
ResponseHeader: 1 cluster_id uint64, 2 member_id uint64, 3 revision int64, 4 raft_term uint64
RangeRequest: 1 key bytes, 2 range_end bytes, 3 limit int64, 4 revision int64, 7 serializable bool, 8 keys_only bool, 9 count_only bool
RangeResponse: 1 header ResponseHeader, 2 kvs *KeyValue, 3 more bool, 4 count int64
PutRequest: 1 key bytes, 2 value bytes, 3 lease int64
PutResponse: 1 header ResponseHeader, 2 prev_kv KeyValue
DeleteRangeRequest: 1 key bytes, 2 range_end bytes, 3 prev_kv bool
DeleteRangeResponse: 1 header ResponseHeader, 2 deleted int64, 3 prev_kvs *KeyValue
Compare: 1 result int32, 2 target int32, 3 key bytes, 4 version int64|, 5 create_revision int64|, 6 mod_revision int64|
RequestOp: 1 request_range RangeRequest|, 2 request_put PutRequest|, 3 request_delete_range DeleteRangeRequest|
ResponseOp: 1 response_range RangeResponse|, 2 response_put PutResponse|, 3 response_delete_range DeleteRangeResponse|
TxnRequest: 1 compare *Compare, 2 success *RequestOp, 3 failure *RequestOp
TxnResponse: 1 header ResponseHeader, 2 succeeded bool, 3 responses *ResponseOp
CompactionRequest: 1 revision int64, 2 physical bool
CompactionResponse: 1 header ResponseHeader
WatchCreateRequest: 1 key bytes, 2 range_end bytes, 3 start_revision int64, 4 progress_notify bool, 6 prev_kv bool
WatchRequest: 1 create_request WatchCreateRequest
WatchResponse: 1 header ResponseHeader, 2 watch_id int64, 3 created bool, 4 canceled bool, 5 compact_revision int64, 6 cancel_reason string, 11 events *Event
"""
EQUAL, GREATER = 0, 1                     # Compare.result
VERSION, MOD = 0, 2                       # Compare.target
DELETED = 1                               # Event.type


@cache
def _classes() -> dict[str, Any]:
    return classes("etcdserverpb", _TABLE)


def message(name: str) -> Any:
    """The class of a message."""
    return _classes()[name]

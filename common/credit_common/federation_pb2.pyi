from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Kind]
    TRAIN: _ClassVar[Kind]
    EVALUATE: _ClassVar[Kind]
    STATISTICS: _ClassVar[Kind]
UNSPECIFIED: Kind
TRAIN: Kind
EVALUATE: Kind
STATISTICS: Kind

class Hello(_message.Message):
    __slots__ = ("wire_versions", "contract_digest", "head")
    WIRE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    wire_versions: _containers.RepeatedScalarFieldContainer[int]
    contract_digest: str
    head: Head
    def __init__(self, wire_versions: _Optional[_Iterable[int]] = ..., contract_digest: _Optional[str] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("node_id", "contract_digest", "counter", "blinded_hash", "overrides", "delta", "epsilon", "epsilon_replace_one", "public_key", "signature")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    BLINDED_HASH_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    EPSILON_REPLACE_ONE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    contract_digest: str
    counter: int
    blinded_hash: str
    overrides: int
    delta: float
    epsilon: float
    epsilon_replace_one: float
    public_key: str
    signature: str
    def __init__(self, node_id: _Optional[int] = ..., contract_digest: _Optional[str] = ..., counter: _Optional[int] = ..., blinded_hash: _Optional[str] = ..., overrides: _Optional[int] = ..., delta: _Optional[float] = ..., epsilon: _Optional[float] = ..., epsilon_replace_one: _Optional[float] = ..., public_key: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("wire_version", "federation", "server_time", "head")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    federation: str
    server_time: float
    head: Head
    def __init__(self, wire_version: _Optional[int] = ..., federation: _Optional[str] = ..., server_time: _Optional[float] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("request", "finished")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    request: Request
    finished: Finished
    def __init__(self, request: _Optional[_Union[Request, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("message_id", "kind", "round", "arrays")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    kind: Kind
    round: int
    arrays: bytes
    def __init__(self, message_id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., round: _Optional[int] = ..., arrays: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("message_id", "adapter", "histogram", "refused", "statistics", "head")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    adapter: bytes
    histogram: bytes
    refused: Refused
    statistics: bytes
    head: Head
    def __init__(self, message_id: _Optional[str] = ..., adapter: _Optional[bytes] = ..., histogram: _Optional[bytes] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., statistics: _Optional[bytes] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("counted",)
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    counted: bool
    def __init__(self, counted: bool = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("rounds", "holders", "adapter", "created", "histogram", "evaluated", "edges", "heads")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    holders: int
    adapter: bytes
    created: str
    histogram: bytes
    evaluated: int
    edges: bytes
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    def __init__(self, rounds: _Optional[int] = ..., holders: _Optional[int] = ..., adapter: _Optional[bytes] = ..., created: _Optional[str] = ..., histogram: _Optional[bytes] = ..., evaluated: _Optional[int] = ..., edges: _Optional[bytes] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ...) -> None: ...

import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Volume(_message.Message):
    __slots__ = ("workspace", "name", "size_mib", "stored_bytes", "created", "sandboxes", "read_only", "problem")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_MIB_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    size_mib: int
    stored_bytes: int
    created: _timestamp_pb2.Timestamp
    sandboxes: _containers.RepeatedScalarFieldContainer[str]
    read_only: bool
    problem: str
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., size_mib: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., sandboxes: _Optional[_Iterable[str]] = ..., read_only: _Optional[bool] = ..., problem: _Optional[str] = ...) -> None: ...

class ListVolumesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListVolumesResponse(_message.Message):
    __slots__ = ("volumes",)
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[Volume]
    def __init__(self, volumes: _Optional[_Iterable[_Union[Volume, _Mapping]]] = ...) -> None: ...

class CreateVolumeRequest(_message.Message):
    __slots__ = ("workspace", "name", "size_mib")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_MIB_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    size_mib: int
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., size_mib: _Optional[int] = ...) -> None: ...

class RemoveVolumeRequest(_message.Message):
    __slots__ = ("workspace", "name")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RemoveVolumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GrowVolumeRequest(_message.Message):
    __slots__ = ("workspace", "name", "size_mib")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_MIB_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    size_mib: int
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., size_mib: _Optional[int] = ...) -> None: ...

class VolumePiece(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportVolumePiece(_message.Message):
    __slots__ = ("volume", "piece", "last")
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    volume: CreateVolumeRequest
    piece: VolumePiece
    last: bool
    def __init__(self, volume: _Optional[_Union[CreateVolumeRequest, _Mapping]] = ..., piece: _Optional[_Union[VolumePiece, _Mapping]] = ..., last: _Optional[bool] = ...) -> None: ...

class ExportVolumeRequest(_message.Message):
    __slots__ = ("workspace", "name", "snapshot")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    snapshot: str
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., snapshot: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("time", "reason", "message", "warning", "done_bytes", "total_bytes")
    TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    reason: str
    message: str
    warning: bool
    done_bytes: int
    total_bytes: int
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., warning: _Optional[bool] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class SuspendRequest(_message.Message):
    __slots__ = ("sandbox",)
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    def __init__(self, sandbox: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("sandbox", "cold")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    COLD_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    cold: bool
    def __init__(self, sandbox: _Optional[str] = ..., cold: _Optional[bool] = ...) -> None: ...

class CreateSnapshotRequest(_message.Message):
    __slots__ = ("sandbox", "name", "disk_only", "volumes")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISK_ONLY_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    name: str
    disk_only: bool
    volumes: bool
    def __init__(self, sandbox: _Optional[str] = ..., name: _Optional[str] = ..., disk_only: _Optional[bool] = ..., volumes: _Optional[bool] = ...) -> None: ...

class RestoreSnapshotRequest(_message.Message):
    __slots__ = ("sandbox", "name", "volumes")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    name: str
    volumes: bool
    def __init__(self, sandbox: _Optional[str] = ..., name: _Optional[str] = ..., volumes: _Optional[bool] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("sandbox",)
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    def __init__(self, sandbox: _Optional[str] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("name", "created", "memory", "memory_bytes", "disk_bytes", "layers", "volumes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    name: str
    created: _timestamp_pb2.Timestamp
    memory: bool
    memory_bytes: int
    disk_bytes: int
    layers: _containers.RepeatedScalarFieldContainer[str]
    volumes: _containers.RepeatedCompositeFieldContainer[SnapshotVolume]
    def __init__(self, name: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., memory: _Optional[bool] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., layers: _Optional[_Iterable[str]] = ..., volumes: _Optional[_Iterable[_Union[SnapshotVolume, _Mapping]]] = ...) -> None: ...

class SnapshotVolume(_message.Message):
    __slots__ = ("name", "size_mib", "stored_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_MIB_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_mib: int
    stored_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_mib: _Optional[int] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("sandbox", "name")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    name: str
    def __init__(self, sandbox: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteSnapshotResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTemplatesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTemplatesResponse(_message.Message):
    __slots__ = ("templates",)
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    templates: _containers.RepeatedCompositeFieldContainer[Template]
    def __init__(self, templates: _Optional[_Iterable[_Union[Template, _Mapping]]] = ...) -> None: ...

class Template(_message.Message):
    __slots__ = ("key", "image_digest", "vcpus", "memory_mib", "workspace", "stored_bytes", "waiting", "created", "used")
    KEY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VCPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    key: str
    image_digest: str
    vcpus: int
    memory_mib: int
    workspace: str
    stored_bytes: int
    waiting: int
    created: _timestamp_pb2.Timestamp
    used: _timestamp_pb2.Timestamp
    def __init__(self, key: _Optional[str] = ..., image_digest: _Optional[str] = ..., vcpus: _Optional[int] = ..., memory_mib: _Optional[int] = ..., workspace: _Optional[str] = ..., stored_bytes: _Optional[int] = ..., waiting: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeleteTemplateRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class DeleteTemplateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("digest", "names", "stored_bytes", "virtual_bytes", "created", "used", "in_use")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    names: _containers.RepeatedScalarFieldContainer[str]
    stored_bytes: int
    virtual_bytes: int
    created: _timestamp_pb2.Timestamp
    used: _timestamp_pb2.Timestamp
    in_use: bool
    def __init__(self, digest: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., stored_bytes: _Optional[int] = ..., virtual_bytes: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., in_use: _Optional[bool] = ...) -> None: ...

class PrefetchImageRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class CollectImagesRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: _Optional[bool] = ...) -> None: ...

class CollectImagesResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CollectedFile]
    def __init__(self, files: _Optional[_Iterable[_Union[CollectedFile, _Mapping]]] = ...) -> None: ...

class CollectedFile(_message.Message):
    __slots__ = ("path", "stored_bytes", "used")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    path: str
    stored_bytes: int
    used: _timestamp_pb2.Timestamp
    def __init__(self, path: _Optional[str] = ..., stored_bytes: _Optional[int] = ..., used: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("interval_ms",)
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    def __init__(self, interval_ms: _Optional[int] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("time", "driver_version", "used_at_seconds", "sandboxes", "templates", "events", "committed_bytes", "memory_limit_bytes", "sandbox_limit", "disk_free_bytes", "addresses_left")
    TIME_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    USED_AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_LEFT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    driver_version: str
    used_at_seconds: float
    sandboxes: _containers.RepeatedCompositeFieldContainer[SeenSandbox]
    templates: _containers.RepeatedCompositeFieldContainer[Template]
    events: _containers.RepeatedCompositeFieldContainer[SeenEvent]
    committed_bytes: int
    memory_limit_bytes: int
    sandbox_limit: int
    disk_free_bytes: int
    addresses_left: int
    def __init__(self, time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., driver_version: _Optional[str] = ..., used_at_seconds: _Optional[float] = ..., sandboxes: _Optional[_Iterable[_Union[SeenSandbox, _Mapping]]] = ..., templates: _Optional[_Iterable[_Union[Template, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[SeenEvent, _Mapping]]] = ..., committed_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., sandbox_limit: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., addresses_left: _Optional[int] = ...) -> None: ...

class SeenSandbox(_message.Message):
    __slots__ = ("id", "name", "workspace", "phase", "intent", "reason", "message", "since", "created", "use", "stored_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    USE_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    workspace: str
    phase: str
    intent: str
    reason: str
    message: str
    since: _timestamp_pb2.Timestamp
    created: _timestamp_pb2.Timestamp
    use: MachineUse
    stored_bytes: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., workspace: _Optional[str] = ..., phase: _Optional[str] = ..., intent: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., use: _Optional[_Union[MachineUse, _Mapping]] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class MachineUse(_message.Message):
    __slots__ = ("run", "cpu_seconds", "memory_bytes", "own_bytes", "shared_bytes", "read_bytes", "written_bytes", "received_bytes", "sent_bytes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    run: str
    cpu_seconds: float
    memory_bytes: int
    own_bytes: int
    shared_bytes: int
    read_bytes: int
    written_bytes: int
    received_bytes: int
    sent_bytes: int
    def __init__(self, run: _Optional[str] = ..., cpu_seconds: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., own_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., read_bytes: _Optional[int] = ..., written_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ...) -> None: ...

class SeenEvent(_message.Message):
    __slots__ = ("sandbox", "time", "reason", "message", "warning")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    time: _timestamp_pb2.Timestamp
    reason: str
    message: str
    warning: bool
    def __init__(self, sandbox: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., warning: _Optional[bool] = ...) -> None: ...

class GetExtensionCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetExtensionCapabilitiesResponse(_message.Message):
    __slots__ = ("driver_name", "base_driver_name", "api", "phases", "mutation_points", "extensions", "held", "driver_config_schema", "hooks")
    DRIVER_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_DRIVER_NAME_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    MUTATION_POINTS_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DRIVER_CONFIG_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    driver_name: str
    base_driver_name: str
    api: str
    phases: _containers.RepeatedScalarFieldContainer[str]
    mutation_points: _containers.RepeatedCompositeFieldContainer[MutationPoint]
    extensions: _containers.RepeatedCompositeFieldContainer[Extension]
    held: _containers.RepeatedCompositeFieldContainer[Held]
    driver_config_schema: str
    hooks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, driver_name: _Optional[str] = ..., base_driver_name: _Optional[str] = ..., api: _Optional[str] = ..., phases: _Optional[_Iterable[str]] = ..., mutation_points: _Optional[_Iterable[_Union[MutationPoint, _Mapping]]] = ..., extensions: _Optional[_Iterable[_Union[Extension, _Mapping]]] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., driver_config_schema: _Optional[str] = ..., hooks: _Optional[_Iterable[str]] = ...) -> None: ...

class MutationPoint(_message.Message):
    __slots__ = ("field", "phases", "keyed", "meaning")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    KEYED_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    field: str
    phases: _containers.RepeatedScalarFieldContainer[str]
    keyed: bool
    meaning: str
    def __init__(self, field: _Optional[str] = ..., phases: _Optional[_Iterable[str]] = ..., keyed: _Optional[bool] = ..., meaning: _Optional[str] = ...) -> None: ...

class Extension(_message.Message):
    __slots__ = ("name", "version", "label_key", "phases", "skipped_phases", "required_phases", "parameters_schema", "configuration_schema", "request_parameters", "sandboxes", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_KEY_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_PHASES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_PHASES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    label_key: str
    phases: _containers.RepeatedScalarFieldContainer[str]
    skipped_phases: _containers.RepeatedScalarFieldContainer[str]
    required_phases: _containers.RepeatedScalarFieldContainer[str]
    parameters_schema: str
    configuration_schema: str
    request_parameters: bool
    sandboxes: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., label_key: _Optional[str] = ..., phases: _Optional[_Iterable[str]] = ..., skipped_phases: _Optional[_Iterable[str]] = ..., required_phases: _Optional[_Iterable[str]] = ..., parameters_schema: _Optional[str] = ..., configuration_schema: _Optional[str] = ..., request_parameters: _Optional[bool] = ..., sandboxes: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("sandbox", "extension", "kind", "name", "until", "orphan", "problem")
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    sandbox: str
    extension: str
    kind: str
    name: str
    until: str
    orphan: bool
    problem: str
    def __init__(self, sandbox: _Optional[str] = ..., extension: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., until: _Optional[str] = ..., orphan: _Optional[bool] = ..., problem: _Optional[str] = ...) -> None: ...

"""What vmdriver.admin.v1 says of images."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from vmdriver._proto import admin_pb2 as pb
from vmdriver.lifecycle.ports.images import CachedFile, ImageProgress, KnownImage
from vmdriver.model.record import utc_now
from vmdriver.service.codec import timestamp


def _moment(seconds: float) -> timestamp_pb2.Timestamp:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


def encode_image(image: KnownImage, *, in_use: bool) -> pb.Image:
    """One base disk."""
    return pb.Image(
        digest=image.disk.digest,
        names=image.references,
        stored_bytes=image.stored_bytes,
        virtual_bytes=image.virtual_bytes,
        created=_moment(image.created),
        used=_moment(image.used),
        in_use=in_use,
    )


def encode_progress(progress: ImageProgress) -> pb.Progress:
    """How far a preparation is."""
    return pb.Progress(
        time=timestamp(utc_now()),
        reason=progress.reason,
        message=progress.detail,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
    )


def encode_removed(file: CachedFile) -> pb.CollectedFile:
    """A file that went, or would."""
    return pb.CollectedFile(
        path=file.path, stored_bytes=file.stored_bytes, used=_moment(file.used)
    )

"""What can go wrong with a bucket, as one error with a kind; callers of the library see `RemoteError`."""

from __future__ import annotations

from typing import Literal

from agent_memory.errors import RemoteError

Kind = Literal["timeout", "unreachable", "denied", "missing_bucket", "too_large", "failed"]

ADVICE = {
    "timeout": "it is slow or dead",
    "unreachable": "check its address and this machine's network",
    "denied": "check the credentials and what they may do; S3 says so of a missing object without s3:ListBucket",
    "missing_bucket": "create the bucket, or check its name and endpoint",
    "too_large": "the object is not one of this library's",
    "failed": "see its own log",
}


class BucketError(RemoteError):
    """A call of a bucket failed: ``kind``, ``place`` (the bucket's URL without secrets), ``doing`` and ``detail``."""

    def __init__(self, kind: Kind, place: str, doing: str, detail: str) -> None:
        self.kind, self.place, self.doing, self.detail = kind, place, doing, detail
        super().__init__(f"remote {place}: {doing} failed ({kind}): {detail}. Advice: {ADVICE[kind]}")

    def __reduce__(self) -> tuple[type[BucketError], tuple[Kind, str, str, str]]:
        return type(self), (self.kind, self.place, self.doing, self.detail)


class ObjectDamagedError(ValueError):
    """The bytes are not the object of that name under that key: changed, cut, exchanged, renamed, forged or foreign."""

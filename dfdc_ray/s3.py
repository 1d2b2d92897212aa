"""Objects in S3, over boto3: the half of storage.py that s3:// uris reach. Requests are few and as large as can be, and counted.

Region, endpoint and credentials come from the standard AWS environment, files and roles (AWS_PROFILE, AWS_ENDPOINT_URL, the machine's
role), never from a uri, and no message repeats them or the server's own words.

Every function raises FileNotFoundError where an object is absent, UserError where access is denied or there is no such bucket, and
StorageError for any other trouble, after `TRIES` tries.
"""

import functools
import io
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from dfdc_ray.errors import StorageError, UserError
from dfdc_ray.ranged import Version

# How long a call may last: the pauses between the tries are drawn by lot from 0..1, 0..2, 0..4 and 0..8 s, so that a fleet that was told to
# slow down does not come back as one. With them a server that cannot be reached costs 33 s at most, one that falls silent 83 s; then the
# caller does the whole unit again. (boto3's own `standard` pauses are too short, 0.4 s in all, for a server that is being started again.)
TRIES = 5
CONNECT_S = 5.0
READ_S = 15.0  # without a byte
CONNECTIONS = 32  # kept open; receipts are read by so many threads
_PIECE = 1 << 20
_PAGE = 1000  # keys; S3 lists no more at a time
_DENIED = {
    "AccessDenied": "check the bucket's policy, and whether the credentials may do this, or have expired",
    "InvalidAccessKeyId": "it does not know this access key id, or its session has expired: check the AWS credentials of this machine",
    "SignatureDoesNotMatch": "the secret access key is wrong: check the AWS credentials of this machine",
    "ExpiredToken": "the session token has expired: get new credentials",
    "InvalidToken": "the session token is not valid, or not for this server: get new credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}


@dataclass(frozen=True)
class Traffic:
    """What a process has asked of S3: requests of any kind (each try counts), and bytes of objects that it received."""

    requests: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.requests + other.requests, self.bytes + other.bytes)

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.requests - other.requests, self.bytes - other.bytes)


class Changed(StorageError):
    """The object is no longer the one that was opened. Opening it again helps."""


_counting, _connecting = threading.Lock(), threading.Lock()
_traffic = Traffic()


def traffic() -> Traffic:
    """Of this process, so far."""
    return _traffic


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of a uri. UserError if it makes no sense or carries credentials."""
    bucket, _, key = uri[len("s3://") :].rstrip("/").partition("/")
    if "@" in bucket or ":" in bucket:
        raise UserError("an s3:// uri must not carry credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,62}", bucket):
        raise UserError(f"{uri}: {bucket!r} is not the name of a bucket: give s3://bucket/key")
    return bucket, key


def get(uri: str, start: int = 0, size: int | None = None, *, version: Version | None = None) -> tuple[bytes, Version]:
    """One request for `size` bytes from `start` (to the end without a size; the last ones with a negative start), as far as they exist.

    Returns them and which content they are of. Changed if that is not `version`.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    pieces: list[bytes] = []
    got = 0
    for tries_left in reversed(range(TRIES)):
        answer = _ask(uri, _range(start, size, got), version)
        if answer is None:
            return b"", Version(0, "")
        first, total = _content_range(answer)
        if start >= 0 and first != start + got:
            raise StorageError(f"{uri}: the S3 server gives other bytes than it was asked for")
        found = Version(total, answer.get("ETag", ""))
        if version and version != found:
            raise Changed(f"{uri}: was replaced while it was read")
        if not got:
            start, size, version = first, int(answer["ContentLength"]), found
        assert size is not None
        try:
            for piece in answer["Body"].iter_chunks(_PIECE):
                pieces.append(piece)
                got += len(piece)
                _count(len(piece))
        except (HTTPClientError, IncompleteReadError, HTTPError, OSError):  # in mid-body, where boto3 no longer tries again
            answer["Body"].close()
        if got == size:
            return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), found
        if tries_left:
            _pause(TRIES - tries_left)
    raise StorageError(f"{uri}: the connection broke {TRIES} times while it was read")


def size_of(uri: str) -> int | None:
    """Size of an object in bytes; None if there is no object of this very key."""
    try:
        return get(uri, 0, 1)[1].size  # unlike HEAD, its errors say what they are
    except FileNotFoundError:
        return None


def list_keys(uri: str, *, recursive: bool = False, most: int | None = None) -> Iterator[tuple[str, Version | None]]:
    """(name below the prefix, its content's version) of each object below it, and (name, None) of each prefix if not recursive."""
    bucket, key = split(uri)
    below = f"{key}/" if key else ""
    options: dict[str, Any] = {"Bucket": bucket, "Prefix": below} | ({} if recursive else {"Delimiter": "/"})
    with _translated(uri):
        pages = (
            _client()
            .get_paginator("list_objects_v2")
            .paginate(**options, PaginationConfig={"MaxItems": most, "PageSize": min(most or _PAGE, _PAGE)})
        )
        for page in pages:
            yield from ((prefix["Prefix"][len(below) : -1], None) for prefix in page.get("CommonPrefixes", ()))
            for entry in page.get("Contents", ()):
                if entry["Key"] != below:
                    yield entry["Key"][len(below) :], Version(entry["Size"], entry["ETag"])


def put(uri: str, data: bytes) -> None:
    """Write or replace an object in one request (at most 5 GiB), so that it is seen whole or not at all."""
    _put(uri, data)


def put_once(uri: str, data: bytes) -> bool:
    """Write an object unless its key is taken: of many writers exactly one gets True (False too if its answer was lost on the way)."""
    for tries_left in reversed(range(TRIES)):
        answer = _put(uri, data, IfNoneMatch="*")
        if answer != 409 or not tries_left:
            break
        _pause(TRIES - tries_left)  # another writer is at it just now
    if answer == 409:
        raise StorageError(f"{uri}: other writers keep writing it")
    return answer != 412


def delete(uri: str) -> None:
    """Delete the object of this very key, if there is one."""
    bucket, key = split(uri)
    with _translated(uri):
        _client().delete_object(Bucket=bucket, Key=key)


def forget() -> None:
    """Close all connections and look at the AWS environment anew."""
    _client_of.cache_clear()


def _ask(uri: str, wanted: str | None, version: Version | None) -> dict[str, Any] | None:
    """GetObject's answer; None if the object is empty and so has no such range. Changed if it is not `version`."""
    from botocore.exceptions import ClientError

    bucket, key = split(uri)
    if not key:
        raise FileNotFoundError(f"{uri}: it is a bucket, not a file")
    conditions = ({"Range": wanted} if wanted else {}) | ({"IfMatch": version.tag} if version and version.tag else {})
    with _translated(uri):
        try:
            return dict(_client().get_object(Bucket=bucket, Key=key, **conditions))
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if version and status in (404, 412, 416):
                raise Changed(f"{uri}: was replaced or deleted while it was read") from error
            if status == 416:
                return None
            raise


def _range(start: int, size: int | None, got: int) -> str | None:
    """The Range header for what is still to come."""
    if start < 0:
        return f"bytes={start}"
    if size is not None:
        return f"bytes={start + got}-{start + size - 1}"
    return f"bytes={start + got}-" if start + got else None


def _content_range(answer: dict[str, Any]) -> tuple[int, int]:
    """Where the answer's bytes begin, and the size of the whole object."""
    match = re.match(r"bytes (\d+)-\d+/(\d+)", answer.get("ContentRange", ""))
    return (int(match[1]), int(match[2])) if match else (0, int(answer["ContentLength"]))


def _put(uri: str, data: bytes, **options: str) -> int:
    """The HTTP status: 200, 409 or 412."""
    from botocore.exceptions import ClientError

    bucket, key = split(uri)
    if not key:
        raise UserError(f"{uri} is a whole bucket: give s3://bucket/key")
    with _translated(uri):
        try:
            # A file, since Python gives a socket's time limit to all of a string, but to each block of a file.
            _client().put_object(Bucket=bucket, Key=key, Body=io.BytesIO(data), **options)
            return 200
        except ClientError as error:
            status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
            if options and status in (409, 412) and error.response["Error"].get("Code") != "NoSuchBucket":
                return status
            raise


def _pause(tries: int) -> None:
    time.sleep(random.random() * 2 ** (tries - 1))


def _count(received: int, requests: int = 0) -> None:
    global _traffic  # noqa: PLW0603
    with _counting:
        _traffic += Traffic(requests, received)


def _client() -> Any:
    with _connecting:  # boto3 makes clients in one thread only
        return _client_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _client_of(_process: int) -> Any:
    """One for each process: a fork makes its own."""
    import boto3
    import botocore.session
    from botocore.config import Config

    # Servers other than AWS answer chunked checksums with 411. In the environment, so that Ray Train's own S3 client knows too.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "legacy", "total_max_attempts": TRIES},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
    )
    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    session = boto3.session.Session(botocore_session=core)
    client = session.client("s3", config=config)
    if "amazonaws.com" not in client.meta.endpoint_url:  # bucket.host is known to AWS's name servers, seldom to others'
        client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "path"})))
    client.meta.events.register("before-send.s3", lambda **_: _count(0, requests=1))
    return client


def _timestamp(value: Any) -> datetime:
    """As boto3's own parser, which takes most of the time of a listing, since each key has a date."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        return cast(datetime, parse_timestamp(value))


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turn boto3's errors into those that the module's docstring promises."""
    from botocore import exceptions as e

    try:
        yield
    except e.ClientError as error:
        raise _meaning(uri, error.response) from error
    except (
        e.NoCredentialsError,
        e.PartialCredentialsError,
        e.CredentialRetrievalError,
        e.ProfileNotFound,
        e.ConfigParseError,
        e.InvalidConfigError,
        e.TokenRetrievalError,
        e.SSOError,
    ) as error:  # by name alone: a message may repeat what a credential process said
        raise UserError(
            f"{uri}: this machine has no usable AWS credentials ({type(error).__name__}). Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give it a role."
        ) from error
    except (e.BotoCoreError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StorageError(f"{uri}: the S3 server does not answer ({type(error).__name__})") from error
    except ValueError as error:
        if "endpoint" not in str(error):
            raise
        raise UserError(f"{uri}: AWS_ENDPOINT_URL is not a URL. Give it as https://host:port.") from error


def _meaning(uri: str, response: dict[str, Any]) -> Exception:
    code, status = str(response.get("Error", {}).get("Code", "")), int(response["ResponseMetadata"]["HTTPStatusCode"])
    if code == "NoSuchBucket":
        return UserError(f"{uri}: there is no such bucket")
    if status == 404:
        return FileNotFoundError(f"{uri}: not found")
    if status in (401, 403) or code in _DENIED:
        return UserError(f"{uri}: S3 denies access ({code or status}): {_DENIED.get(code, _DENIED['AccessDenied'])}.")
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return UserError(f"{uri}: the bucket is in another region ({code or status}). Set AWS_DEFAULT_REGION to its region.")
    return StorageError(f"{uri}: the S3 server answers {code or 'an error'} (HTTP status {status})")

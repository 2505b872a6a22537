"""What a failed request to an object store means: try again, give up at once, or leave it to whoever asked; in words.

A wrong reading here costs images: a store that is away for a minute must not look like ten thousand files that can not
be read, and wrong credentials not like a busy store.
"""

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from schemas.credentials import redacted
from schemas.errors import StorageError

_PASSING = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)
_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ConditionalRequestConflict", "OperationAborted"}
# Statuses that callers know how to go on from.
PRECONDITION_FAILED, EMPTY = 412, 416
_TOO_MANY, _SERVER_ERROR, _NOT_IMPLEMENTED = 429, 500, 501

# About who asks, not about what is asked for: no other object would fare better.
_REFUSED_CODES = {
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "ExpiredTokenException",
    "IllegalLocationConstraintException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "PermanentRedirect",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_WRITING = {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload", "delete_objects"}


class TornAnswerError(OSError):
    """What arrived is not what the store said it would send."""


class LeftBehindError(OSError):
    """Some objects of a bulk removal were not removed for a passing reason."""


def answer_of(error: BaseException) -> tuple[int, str]:
    """Return the status and code that a store answered with; 0 and '' without an answer, or where we have said it."""
    if isinstance(error, StorageError):
        return 0, ""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed when it is made again."""
    status, code = answer_of(error)
    if status:
        failing = status >= _SERVER_ERROR and status != _NOT_IMPLEMENTED
        return failing or status == _TOO_MANY or code in _PASSING_CODES
    if isinstance(error, boto.ClientError | StorageError):
        return False
    return isinstance(error, (*_PASSING, TornAnswerError, LeftBehindError))


def in_words(error: BaseException) -> str:
    """Name a failure: what the store answered, else the kind of error, whose text may hold anything."""
    status, code = answer_of(error)
    if status or code:
        return f"status {status} {code}".strip()
    if isinstance(error, TornAnswerError | LeftBehindError):
        return redacted(str(error))
    return type(error).__name__


def refusal_of(error: Exception, method: str, name: str, address: str) -> StorageError | None:
    """Return an error of ours for what concerns the whole store; None for what concerns one object of it.

    Parameters
    ----------
    error
        What a request failed with.
    method
        The operation of S3, like ``put_object``.
    name
        The request in words.
    address
        The store's host.
    """
    if isinstance(error, boto.ProfileNotFound):
        return StorageError(
            f"{name}: {redacted(str(error))} on this machine. Correct storage.profile or AWS_PROFILE, or add the "
            "profile to the AWS configuration files of every machine that takes part."
        )
    code = answer_of(error)[1]
    if code in _REFUSED_CODES or isinstance(error, boto.BotoCoreError):
        return StorageError(
            f"{name}: {address} can not be used with these credentials and settings ({in_words(error)}). "
            "Check AWS_ACCESS_KEY_ID and its like, storage.profile, storage.region and storage.endpoint_url; for a "
            "public bucket use --set storage.anonymous=true."
        )
    if code == "NoSuchBucket" and method in _WRITING:
        return StorageError(f"{name}: there is no such bucket at {address}. Create it, or check its name.")
    if isinstance(error, PermissionError) and method in _WRITING:
        return StorageError(f"{name}: writing is denied. Grant the credentials in use PutObject and DeleteObject.")
    return None

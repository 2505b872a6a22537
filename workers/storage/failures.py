"""What a failed request to an object store means: try again, give up at once, or leave it to the caller.

A wrong answer costs images: ten thousand images must not become unreadable because a store is away for a minute, and
wrong credentials must not look like a busy store.
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
# Callers handle these statuses.
PRECONDITION_FAILED, EMPTY = 412, 416
_TOO_MANY, _SERVER_ERROR, _NOT_IMPLEMENTED = 429, 500, 501

# These answers concern the caller, not the object: every other request would fail too.
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
    """The answer is not what the store announced."""


class LeftBehindError(OSError):
    """A bulk removal left some objects behind for a passing reason."""


def answer_of(error: BaseException) -> tuple[int, str]:
    """Return the status and code of a store's answer; 0 and '' if there is none, or for an error of ours."""
    if isinstance(error, StorageError):
        return 0, ""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed if it is repeated."""
    status, code = answer_of(error)
    if status:
        failing = status >= _SERVER_ERROR and status != _NOT_IMPLEMENTED
        return failing or status == _TOO_MANY or code in _PASSING_CODES
    if isinstance(error, boto.ClientError | StorageError):
        return False
    return isinstance(error, (*_PASSING, TornAnswerError, LeftBehindError))


def in_words(error: BaseException) -> str:
    """Name a failure by the store's answer, else by the type of the error, whose text may contain secrets."""
    status, code = answer_of(error)
    if status or code:
        return f"status {status} {code}".strip()
    if isinstance(error, TornAnswerError | LeftBehindError):
        return redacted(str(error))
    return type(error).__name__


def refusal_of(error: Exception, method: str, name: str, address: str) -> StorageError | None:
    """Return our error for a failure that concerns the whole store; None if it concerns only one object.

    ``method`` is the S3 operation, like ``put_object``, ``name`` the request in words, ``address`` the store's host.
    """
    if isinstance(error, boto.ProfileNotFound):
        return StorageError(
            f"{name}: {redacted(str(error))} on this machine. Correct storage.profile or AWS_PROFILE, or add the "
            "profile to the AWS configuration files of every machine of the cluster."
        )
    code = answer_of(error)[1]
    if code in _REFUSED_CODES or isinstance(error, boto.BotoCoreError):
        return StorageError(
            f"{name}: {address} cannot be used with these credentials and settings ({in_words(error)}). "
            "Check AWS_ACCESS_KEY_ID and so on, storage.profile, storage.region and storage.endpoint_url; for a "
            "public bucket use --set storage.anonymous=true."
        )
    if code == "NoSuchBucket" and method in _WRITING:
        return StorageError(f"{name}: the bucket does not exist at {address}. Create it or correct its name.")
    if isinstance(error, PermissionError) and method in _WRITING:
        return StorageError(f"{name}: writing is denied. Grant PutObject and DeleteObject to the credentials in use.")
    return None

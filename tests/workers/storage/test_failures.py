"""What a failed request means: a busy store is asked again, and wrong credentials end the command."""

from typing import Any

import aiohttp
import pytest
from botocore import exceptions as boto

from schemas.errors import StorageError
from workers.storage.failures import LeftBehindError, TornAnswerError, answer_of, in_words, is_passing, refusal_of

WRITE, READ = "put_object", "get_object"


def answered(status: int, code: str = "") -> boto.ClientError:
    """Return the error of a store that answered."""
    answer: Any = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code, "Message": "key=SECRET"}}
    return boto.ClientError(answer, "PutObject")


def translated(kind: type[OSError], status: int, code: str) -> OSError:
    """Return the error that s3fs makes of an answer."""
    try:
        raise kind(code) from answered(status, code)
    except OSError as error:
        return error


def refusal(error: Exception, method: str) -> str | None:
    refused = refusal_of(error, method, f"{method} of s3://factory/a", "store:9000")
    return None if refused is None else str(refused)


PASSING = [
    answered(500, "InternalError"),
    answered(502),
    answered(503, "SlowDown"),
    answered(429),
    answered(400, "RequestTimeout"),
    answered(409, "OperationAborted"),
    translated(OSError, 503, "ServiceUnavailable"),
    boto.EndpointConnectionError(endpoint_url="http://store"),
    boto.ReadTimeoutError(endpoint_url="http://store"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    aiohttp.ClientPayloadError(),
    ConnectionResetError(),
    TimeoutError(),
    TornAnswerError("1 bytes of 0-1/2"),
    LeftBehindError("s3://factory/a was not removed"),
]
LASTING = [
    answered(400, "InvalidRequest"),
    answered(403, "AccessDenied"),
    answered(404, "NoSuchKey"),
    answered(412, "PreconditionFailed"),
    answered(416, "InvalidRange"),
    answered(501, "NotImplemented"),
    translated(PermissionError, 403, "AccessDenied"),
    FileNotFoundError(),
    PermissionError(),
    boto.NoCredentialsError(),
    StorageError("ours"),
    ValueError(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert is_passing(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not_tried_again(error: Exception) -> None:
    assert not is_passing(error)


@pytest.mark.parametrize(
    "code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "RequestTimeTooSkewed", "PermanentRedirect"]
)
@pytest.mark.parametrize("method", [READ, WRITE])
def test_an_answer_about_who_asks_ends_the_command_with_what_to_check(code: str, method: str) -> None:
    said = refusal(translated(PermissionError, 403, code), method)
    assert said is not None
    for part in (f"{method} of s3://factory/a", "store:9000", code, "AWS_ACCESS_KEY_ID", "storage.anonymous=true"):
        assert part in said


def test_an_answer_about_one_object_is_left_to_the_reader_of_that_object() -> None:
    for error in (
        translated(FileNotFoundError, 404, "NoSuchKey"),
        translated(FileNotFoundError, 404, "NoSuchBucket"),
        translated(PermissionError, 403, "AccessDenied"),
        translated(OSError, 412, "PreconditionFailed"),
    ):
        assert refusal(error, READ) is None


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (translated(FileNotFoundError, 404, "NoSuchBucket"), "Create it"),
        (translated(PermissionError, 403, "AccessDenied"), "PutObject and DeleteObject"),
    ],
)
def test_where_nothing_can_be_written_the_command_ends_with_what_to_do(error: Exception, advice: str) -> None:
    said = refusal(error, WRITE)
    assert said is not None
    assert advice in said


def test_an_error_is_named_by_its_answer_and_its_text_is_not_repeated() -> None:
    assert in_words(answered(503, "SlowDown")) == "status 503 SlowDown"
    assert in_words(answered(502)) == "status 502"
    assert in_words(OSError("https://user:secret-password@store")) == "OSError"
    assert in_words(TornAnswerError("5 bytes of 0-9/10")) == "5 bytes of 0-9/10"
    assert "secret-password" not in in_words(TornAnswerError("of https://user:secret-password@store"))


def test_an_answer_is_found_in_an_error_and_in_its_cause() -> None:
    assert answer_of(answered(404, "NoSuchKey")) == (404, "NoSuchKey")
    assert answer_of(translated(FileNotFoundError, 404, "NoSuchKey")) == (404, "NoSuchKey")
    assert answer_of(ConnectionResetError()) == (0, "")

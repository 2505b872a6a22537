"""Credentials must not be written down: where they stand in URLs and in the environment, and texts without them.

Sources, outputs and weights are written into the manifest, the configuration and the log for all to read. So a URL that
carries credentials is refused, and whatever is shown or logged passes through `redacted`.
"""

import os
import re

from schemas.errors import ConfigError

# user:password@ before the host; in the URLs of web servers and object stores also a bare token@.
_USER_INFO = re.compile(r"(?P<protocol>\b[a-z][a-z0-9+.-]*://)[^/?#\s:@]*:[^/?#\s]*@", re.IGNORECASE)
_TOKEN = re.compile(r"(?P<protocol>\b(?:https?|s3a?)://)[^/?#\s@]+@", re.IGNORECASE)

# Parameters of presigned URLs of S3, Google and Azure.
_SIGNED = re.compile(
    r"(?P<parameter>[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig)=)"
    r"[^&\s'\"]+",
    re.IGNORECASE,
)
_WEB = re.compile(r"https?://", re.IGNORECASE)

_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "FSSPEC_S3_KEY",
    "FSSPEC_S3_SECRET",
    "FSSPEC_S3_TOKEN",
)
# Shorter values are no secrets, and may be parts of words.
_SECRET_LENGTH = 8

HIDDEN = "***"


def has_credentials(location: str) -> bool:
    """Tell whether a URL carries a password, a token or a signature."""
    return bool(
        _USER_INFO.match(location) or _TOKEN.match(location) or (_WEB.match(location) and _SIGNED.search(location))
    )


def refuse_credentials(location: str, name: str) -> str:
    """Return a location that carries no credentials.

    Parameters
    ----------
    location
        Path or URL.
    name
        What it is, for the message.

    Raises
    ------
    ConfigError
        When it carries some.
    """
    if has_credentials(location):
        raise ConfigError(
            f"{name} {redacted(location)!r} has credentials in it, and it would be written down for all to read. Leave "
            "them out of the URL: give them by the environment (AWS_ACCESS_KEY_ID, ...) or by storage.profile."
        )
    return location


def redacted(text: str) -> str:
    """Return a text with the credentials in its URLs, and those of this process's environment, replaced by ``***``."""
    text = _USER_INFO.sub(rf"\g<protocol>{HIDDEN}@", text)
    text = _TOKEN.sub(rf"\g<protocol>{HIDDEN}@", text)
    text = _SIGNED.sub(rf"\g<parameter>{HIDDEN}", text)
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, HIDDEN)
    return text

"""Keep credentials out of everything that is written: find them in URLs and in the environment, and hide them.

Sources, outputs and weights appear in the manifest, the configuration and the log, where all can read them. So a URL
with credentials is refused, and every text that is shown or logged passes through `redacted`.
"""

import os
import re

from schemas.errors import ConfigError

# user:password@ before the host; URLs of web servers and object stores may also have a bare token@.
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
# A shorter value is not a secret, and may be part of a word.
_SECRET_LENGTH = 8

HIDDEN = "***"


def has_credentials(location: str) -> bool:
    """Tell whether a URL carries a password, a token or a signature."""
    return bool(
        _USER_INFO.match(location) or _TOKEN.match(location) or (_WEB.match(location) and _SIGNED.search(location))
    )


def refuse_credentials(location: str, name: str) -> str:
    """Return a path or URL that carries no credentials; raise `ConfigError` if it does.

    The error calls the location by ``name``.
    """
    if has_credentials(location):
        raise ConfigError(
            f"{name} {redacted(location)!r} contains credentials, which the run would write where others read them. "
            "Remove them from the URL and give them in the environment (AWS_ACCESS_KEY_ID, ...) or by storage.profile."
        )
    return location


def redacted(text: str) -> str:
    """Return a text with ``***`` for the credentials in its URLs and for those in this process's environment."""
    text = _USER_INFO.sub(rf"\g<protocol>{HIDDEN}@", text)
    text = _TOKEN.sub(rf"\g<protocol>{HIDDEN}@", text)
    text = _SIGNED.sub(rf"\g<parameter>{HIDDEN}", text)
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, HIDDEN)
    return text

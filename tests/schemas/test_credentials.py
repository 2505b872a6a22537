"""Credentials in URLs are recognised, refused and hidden, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.credentials import has_credentials, redacted, refuse_credentials
from schemas.errors import ConfigError

SECRETS = {
    "https://user:secret-text@host/a": "https://***@host/a",
    "https://secret-text@host/a": "https://***@host/a",
    "s3://AKIA:secret-text@bucket/key": "s3://***@bucket/key",
    "sftp://user:secret-text@host:22/a": "sftp://***@host:22/a",
    "https://b.s3.amazonaws.com/a.png?X-Amz-Signature=secret-text": (
        "https://b.s3.amazonaws.com/a.png?X-Amz-Signature=***"
    ),
    "https://x.blob.core.windows.net/a?sv=1&sig=secret-text&se=2": (
        "https://x.blob.core.windows.net/a?sv=1&sig=***&se=2"
    ),
}
HARMLESS = [
    "s3://bucket/a@2x.png",
    "s3://bucket/line:1/a@b.png",
    "https://host:9000/a@b:c",
    "sftp://user@host/a",
    "/archive/user:name@place.png",
    "a/b.png",
    "memory://run",
]


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_in_a_url_are_refused_without_repeating_them(url: str) -> None:
    assert has_credentials(url)
    with pytest.raises(ConfigError, match=r"the source .* contains credentials") as caught:
        refuse_credentials(url, "the source")
    assert "secret-text" not in str(caught.value)


@pytest.mark.parametrize(("url", "shown"), SECRETS.items())
def test_texts_are_shown_without_the_credentials_in_their_urls(url: str, shown: str) -> None:
    assert redacted(f"it failed at {url} twice") == f"it failed at {shown} twice"


@pytest.mark.parametrize("location", HARMLESS)
def test_other_locations_are_what_they_are(location: str) -> None:
    assert refuse_credentials(location, "the source") == redacted(location) == location


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "FSSPEC_S3_SECRET"]
)
def test_the_secrets_of_the_environment_are_hidden_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "planted-secret")
    assert redacted("Credential=planted-secret/20261124") == "Credential=***/20261124"


def test_a_value_too_short_for_a_secret_hides_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert redacted("a test") == "a test"


@given(
    user=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
    password=st.from_regex(r"[A-Z0-9_.~+=@-]{8,20}", fullmatch=True),
)
def test_no_password_is_ever_shown(user: str, password: str) -> None:
    url = f"https://{user}:{password}@host/key"
    assert has_credentials(url)
    assert password not in redacted(f"{url}, {url}")

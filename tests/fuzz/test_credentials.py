"""Texts with secrets in them: shown without, and refused where they would be written down."""

import string

from hypothesis import given
from hypothesis import strategies as st

from pipeline.run_directory.log import one_line
from schemas.credentials import has_credentials, redacted, refuse_credentials
from schemas.errors import ConfigError
from tests.fuzz.mutations import attempt, fuzzing, tried

SECRET = "planted-secret"
PARTS = string.ascii_letters + string.digits + "-._~%+="

texts = st.text(st.sampled_from(PARTS), max_size=6)
users = st.text(st.sampled_from(PARTS), max_size=6)
protocols = st.sampled_from(["http", "https", "s3", "s3a", "HTTPS", "ftp", "abfs", "memory"])
with_password = st.builds(
    lambda protocol, user, before, after, host: f"{protocol}://{user}:{before}{SECRET}{after}@{host or 'h'}/a.png",
    protocols,
    users,
    texts,
    texts,
    texts,
)
signed = st.builds(
    lambda host, name, before, after, rest: f"https://{host or 'h'}/a.png?x={before}&{name}={SECRET}{after}{rest}",
    texts.map(lambda text: text.replace("=", "")),
    st.sampled_from(["X-Amz-Signature", "x-goog-signature", "X-Amz-Security-Token", "AWSAccessKeyId", "sig"]),
    texts,
    texts,
    st.sampled_from(["", "&y=1", "#end"]),
)
urls = with_password | signed


@fuzzing(150)
@given(url=urls)
def test_urls_with_secrets_are_refused_without_repeating_them(url: str) -> None:
    tried["URLs with secrets"] += 1
    assert has_credentials(url)
    assert SECRET not in redacted(url)
    try:
        refuse_credentials(url, "the URL")
    except ConfigError as error:
        said = str(error)
    assert SECRET not in said


@fuzzing(150)
@given(before=st.text(max_size=10), url=urls, after=st.text(max_size=10))
def test_no_text_shows_a_secret(before: str, url: str, after: str) -> None:
    tried["texts with secrets"] += 1
    assert SECRET not in one_line(f"{before} {url} {after}")


@fuzzing(50)
@given(text=st.text(max_size=60))
def test_any_text_is_shown_on_one_printable_line(text: str) -> None:
    tried["texts"] += 1
    assert one_line(text).isprintable()
    attempt(lambda: refuse_credentials(text, "the URL"), ConfigError)

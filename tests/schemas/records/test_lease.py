"""Leases: read back as written, or not at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records.lease import LeaseRecord, lease_name

LEASES = st.builds(LeaseRecord, st.text(), st.text(), st.text(), st.integers(), st.text(), st.integers(), st.booleans())
LEASE = LeaseRecord("me", "factory-7", "boot namespace", 17, "123", 4)


@given(lease=LEASES)
def test_a_lease_is_read_back_as_written(lease: LeaseRecord) -> None:
    assert LeaseRecord.from_bytes(lease.to_bytes()) == lease


@given(cut=st.integers(0, len(LEASE.to_bytes()) - 2))
def test_a_torn_lease_is_none(cut: int) -> None:
    with pytest.raises(ValueError, match="not a lease"):
        LeaseRecord.from_bytes(LEASE.to_bytes()[:cut])


@pytest.mark.parametrize("field", ["owner", "host", "place", "pid", "started", "beat", "released"])
def test_a_field_of_another_type_is_no_lease(field: str) -> None:
    stored = {**json.loads(LEASE.to_bytes()), field: ["other"]}
    with pytest.raises(ValueError, match=field):
        LeaseRecord.from_bytes(json.dumps(stored).encode())


@given(content=st.binary())
def test_any_other_content_is_no_lease(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a lease"):
        LeaseRecord.from_bytes(content)


def test_names_sort_as_numbers_do() -> None:
    assert [lease_name(number) for number in (1, 12, 12345)] == ["0001.json", "0012.json", "12345.json"]

"""What fuzz tests share: files that were valid before something happened to them, and how many are tried.

``make test`` tries few and always the same ones, ``make torture`` others and ``PAIRE_FUZZ`` times as many.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

Result = TypeVar("Result")

TIMES = int(os.environ.get("PAIRE_FUZZ", "1"))

# Inputs tried, by target.
tried: Counter[str] = Counter()

# Where lengths and counts stand in a file, these do the most harm.
_NUMBERS = tuple(
    number.to_bytes(size, order)
    for size in (2, 4, 8)
    for number in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
_KINDS = ("flip", "set", "truncate", "cut", "repeat", "swap", "splice", "insert", "zero", "number")

# Values of any kind, to be written as YAML or JSON: some that no reader of numbers likes among them.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([10**400, -1, 2**63, "2001-99-99", "", "nan", "1e999", "a,b", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def fuzzing(examples: int) -> settings:
    """Return Hypothesis's settings for a target that tries this number of inputs in ``make test``."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        # Of many failures the first says enough, and shrinking takes longer than finding.
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Mutation:
    """One thing that happens to a file; places are shares of its length, in 65536ths."""

    kind: str
    place: int
    other: int
    size: int
    content: bytes

    def apply(self, file: bytes, others: Sequence[bytes]) -> bytes:
        start, second = (place * len(file) // 65536 for place in (self.place, self.other))
        end = start + self.size
        match self.kind:
            case "flip":
                return file[:start] + bytes(byte ^ 1 << self.size % 8 for byte in file[start:][:1]) + file[start + 1 :]
            case "set":
                return file[:start] + self.content[:1] + file[start + 1 :]
            case "truncate":
                return file[:start]
            case "cut":
                return file[:start] + file[end:]
            case "repeat":
                return file[:end] + file[start:end] * 2 + file[end:]
            case "swap":
                first, last = sorted((start, second))
                last = max(first + self.size, last)
                between = file[first + self.size : last]
                return (
                    file[:first]
                    + file[last:][: self.size]
                    + between
                    + file[first:][: self.size]
                    + file[last:][self.size :]
                )
            case "splice":
                other = others[self.size % len(others)]
                return file[:start] + other[self.other * len(other) // 65536 :]
            case "insert":
                return file[:start] + self.content + file[start:]
            case "zero":
                return file[:start] + bytes(len(file[start:end])) + file[end:]
            case "number":
                number = _NUMBERS[self.other % len(_NUMBERS)]
                return file[:start] + number + file[start + len(number) :]
        raise AssertionError(self.kind)


_places = st.integers(0, 65535)
_sizes, _contents = st.integers(1, 64), st.binary(min_size=1, max_size=8)
mutations = st.lists(
    st.builds(Mutation, st.sampled_from(_KINDS), _places, _places, _sizes, _contents), min_size=1, max_size=4
)


def mutate(file: bytes, steps: Sequence[Mutation], others: Sequence[bytes]) -> bytes:
    """Return a file after all that has happened to it."""
    for step in steps:
        file = step.apply(file, others)
    return file


def mutated(files: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return valid files to which something has happened."""
    return st.builds(mutate, st.sampled_from(list(files)), mutations, st.just(list(files)))


def attempt(call: Callable[[], Result], *refusals: type[Exception]) -> Result | None:
    """Return what a call returns; None where it refuses, which it must do with a reason."""
    try:
        return call()
    except refusals as error:
        reason = str(error)
    assert reason
    return None

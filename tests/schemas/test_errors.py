"""Errors: exit codes, builtin bases, and survival of the way from a worker."""

import pickle

import pytest

from schemas import errors
from schemas.errors import PaireError

CLASSES = PaireError.__subclasses__()


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_survives_pickling_with_its_message_and_exit_code(error: type[PaireError]) -> None:
    copy = pickle.loads(pickle.dumps(error("what, where and what to do")))
    assert type(copy) is error
    assert str(copy) == "what, where and what to do"
    assert copy.exit_code == error.exit_code


@pytest.mark.parametrize(
    "error", [each for each in CLASSES if each is not errors.StorageError], ids=lambda error: error.__name__
)
def test_an_error_inherits_a_builtin_that_fits(error: type[PaireError]) -> None:
    builtin = error.__mro__[error.__mro__.index(PaireError) + 1]
    assert builtin.__module__ == "builtins"
    assert builtin is not Exception


def test_what_is_wrong_with_a_whole_store_is_not_taken_for_what_is_wrong_with_a_file() -> None:
    assert not issubclass(errors.StorageError, OSError | ValueError)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.SourceError, 2),
        (errors.WeightsError, 2),
        (errors.DeviceError, 2),
        (errors.ClusterError, 2),
        (errors.FeatureRangeError, 2),
        (errors.SingularCovarianceError, 2),
        (errors.GaussianMapError, 2),
        (errors.UnreadableBudgetError, 3),
        (errors.UntrustworthyError, 4),
        (errors.RunConflictError, 5),
    ],
)
def test_exit_codes_are_those_of_the_contract(error: type[PaireError], code: int) -> None:
    assert error.exit_code == code


def test_an_interrupted_command_exits_75() -> None:
    assert errors.EXIT_INTERRUPTED == 75

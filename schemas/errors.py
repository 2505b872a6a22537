"""Every error that the system raises on purpose, with the exit code that a command ends with.

A message names the wrong value, what was expected, where, and what to do. Each class but StorageError also inherits
the builtin that fits, so callers may catch either. The only argument is the message, so errors survive pickling on
their way from a worker.
"""

EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_UNREADABLE = 3
EXIT_UNTRUSTWORTHY = 4
EXIT_CONFLICT = 5
EXIT_INTERRUPTED = 75


class PaireError(Exception):
    """Base class of errors that the user can understand and act on."""

    exit_code = EXIT_UNEXPECTED


class ConfigError(PaireError, ValueError):
    """A configuration value is unknown, of the wrong type or out of range."""

    exit_code = EXIT_USAGE


class SourceError(PaireError, OSError):
    """The archive or its index is missing, empty or malformed."""

    exit_code = EXIT_USAGE


class DamagedArrayError(SourceError):
    """A stored array that can be computed again, such as distances, is torn, altered or incomplete."""


class WeightsError(PaireError, ValueError):
    """The backbone's weights cannot be loaded or do not fit the backbone."""

    exit_code = EXIT_USAGE


class DeviceError(PaireError, RuntimeError):
    """The requested compute device does not exist."""

    exit_code = EXIT_USAGE


class ClusterError(PaireError, RuntimeError):
    """The Dask cluster cannot be reached or has no workers."""

    exit_code = EXIT_USAGE


class StorageError(PaireError):
    """A store cannot be used: it does not answer, it is full, or it refuses the credentials, the bucket or the access.

    Not an `OSError`: what is wrong with one file must not hide what is wrong with the whole store.
    """

    exit_code = EXIT_USAGE


class DecoderError(PaireError, RuntimeError):
    """Images cannot be decoded on this machine, and no image is the cause."""

    exit_code = EXIT_USAGE


class FeatureRangeError(PaireError, OverflowError):
    """Patch features are not finite or do not fit the store's dtype."""

    exit_code = EXIT_USAGE


class SingularCovarianceError(PaireError, ArithmeticError):
    """A covariance is not positive definite even with its ridge."""

    exit_code = EXIT_USAGE


class GaussianMapError(PaireError, ValueError):
    """A published Gaussian map is missing or incomplete, or cannot score what it was given."""

    exit_code = EXIT_USAGE


class UnreadableBudgetError(PaireError, RuntimeError):
    """More inputs are unreadable than the failure budget allows."""

    exit_code = EXIT_UNREADABLE


class UntrustworthyError(PaireError, RuntimeError):
    """The breakdown guard does not trust a result, and nobody has accepted it."""

    exit_code = EXIT_UNTRUSTWORTHY


class RunConflictError(PaireError, FileExistsError):
    """The run directory belongs to another configuration, archive or run."""

    exit_code = EXIT_CONFLICT


class LedgerError(PaireError, RuntimeError):
    """The ledger does not balance: an input was lost or counted twice."""

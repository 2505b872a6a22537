"""How this process reaches object stores: set once by a command, and by it in each of its workers.

Files are read and written deep inside tasks that know nothing but a URL, so the settings belong to the process, as the
environment's credentials do. They hold no secret. Imports nothing heavy: commands set them before anything is loaded.
"""

from schemas.config import StorageConfig

_current = StorageConfig()


def use_storage(settings: StorageConfig) -> None:
    """Reach object stores in this way from now on, in all threads of this process."""
    global _current
    _current = settings


def storage_in_use() -> StorageConfig:
    """Return the settings in force."""
    return _current

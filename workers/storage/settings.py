"""How this process reaches object stores; a command sets this once, in its own process and in each worker.

Tasks read and write files deep inside and know only a URL, so the settings belong to the process, like the credentials
in its environment. They hold no secret. This file imports nothing heavy, because commands set them before they load
anything.
"""

from schemas.config import StorageConfig

_current = StorageConfig()


def use_storage(settings: StorageConfig) -> None:
    """Use these settings from now on, in all threads of this process."""
    global _current
    _current = settings


def storage_in_use() -> StorageConfig:
    """Return the current settings."""
    return _current

"""How this process reaches object stores: all of its threads, until another command sets it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from schemas.config import StorageConfig
from workers.storage.settings import storage_in_use, use_storage


def test_all_threads_of_the_process_use_the_settings_that_were_set_last() -> None:
    before = storage_in_use()
    try:
        for settings in (StorageConfig(region="eu-central-1"), StorageConfig(region="us-east-1")):
            use_storage(settings)
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(storage_in_use).result() is storage_in_use() is settings
    finally:
        use_storage(before)


def test_a_fresh_process_has_the_defaults_and_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom schemas.config import StorageConfig\nfrom workers.storage.settings import storage_in_use\n"
        "assert storage_in_use() == StorageConfig()\n"
        "assert not {'torch', 'dask', 'zarr', 's3fs', 'fsspec', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr

"""A real Ceph RADOS gateway on this machine, in memory: one monitor, one OSD, radosgw, from Debian's packages.

``apt-get install radosgw ceph-mon ceph-osd``; the daemons take fixed ports of 127.0.0.1 and end with the block.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.storage.servers import ACCESS_KEY, SECRET_KEY

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
MONITOR_PORT, GATEWAY_PORT = 16789, 17480
START_S = 60

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor_port}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648

[client.rgw]
ms mon client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw run sync thread = false
"""


def missing_programs() -> list[str]:
    """Return what of Ceph is not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def ceph_gateway(folder: Path) -> Iterator[str]:
    """Yield the address of a gateway that keeps its files in an empty folder; the tests' user may do anything there."""
    fsid, configuration = str(uuid.uuid4()), folder / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(fsid=fsid, folder=folder, monitor_port=MONITOR_PORT, gateway_port=GATEWAY_PORT)
    )
    for name in ("mon", "osd"):
        (folder / name).mkdir()

    def run(program: str, *arguments: str) -> str:
        command = [program, "-c", str(configuration), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_S).stdout

    gateway = ("-n", "client.rgw", "--no-mon-config")
    try:
        monitors, osd = str(folder / "monmap"), str(uuid.uuid4())
        run("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{MONITOR_PORT}]", "--fsid", fsid, monitors)
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monitors)
        run("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        run("ceph-osd", "-i", "0")
        _wait(lambda: "1 up" in run("ceph", "osd", "stat"), "its OSD is up")
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        run("radosgw-admin", *gateway, "user", "create", "--uid=tests", "--display-name=tests", *keys)
        run("radosgw", *gateway)
        endpoint = f"http://127.0.0.1:{GATEWAY_PORT}"
        _wait(lambda: _answers(endpoint), "its gateway answers")
        yield endpoint
    finally:
        _stop(folder)


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait(holds: Callable[[], bool], condition: str) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Ceph was started, but not within {START_S} s {condition}")
        time.sleep(0.5)


def _stop(folder: Path) -> None:
    """End the daemons that were started from a folder."""
    for path in sorted(folder.glob("*.pid")):
        try:
            os.kill(int(path.read_text()), signal.SIGKILL)  # nothing of it is kept
        except (ProcessLookupError, ValueError):
            continue

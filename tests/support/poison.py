"""Images that kill, block or exhaust the process that decodes them, if it is told to suffer from them.

Real files that crash a decoder exist for one version of one library. Here Python's ``sitecustomize``, which every
process loads as it starts, makes Pillow fail on images that a text chunk marks. Other processes read them as usual.
"""

from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.archives import part_pixels

CRASH, LOOP, MEMORY = "crash", "loop", "memory"

_SUFFERS = f'''
import os, resource, signal, time
import PIL.Image

def open_image(*args, before=PIL.Image.open, **options):
    image = before(*args, **options)
    kind = image.info.get("poison")
    if kind == "{CRASH}":
        os.kill(os.getpid(), signal.SIGSEGV)
    while kind == "{LOOP}":
        time.sleep(0.01)
    if kind == "{MEMORY}":
        if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel would, when all of the machine's memory is gone
        taken = []
        while True:
            taken.append(bytearray(2**26))
    return image

PIL.Image.open = open_image
'''


def write_poison(path: Path, kind: str, seed: int) -> None:
    """Write an image of a part that is poison of a kind."""
    mark, content = PngInfo(), BytesIO()
    mark.add_text("poison", kind)
    Image.fromarray(part_pixels(seed)).save(content, "PNG", pnginfo=mark)
    path.write_bytes(content.getvalue())


def write_sitecustomize(folder: Path) -> Path:
    """Write what lets a process with the folder on its PYTHONPATH suffer from poison; returns the folder."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SUFFERS)
    return folder

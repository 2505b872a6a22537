"""Find the images of a block that must not be decoded in a worker, because they kill the process or never end.

If a worker dies in the middle of a block, nobody knows which image was the cause, or whether one was. So a separate
process tries each image, and its death names the image exactly; halving the block would try images more often.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from schemas.config import FeaturesConfig, InputConfig
from schemas.records.image import ImageRef
from workers.images.decoder_process import DecoderDiedError, DecoderProcess
from workers.storage.directory import read_bytes


def find_poison(
    images: Sequence[ImageRef], inputs: InputConfig, features: FeaturesConfig, *, processes: int
) -> dict[int, str]:
    """Try to decode every image of a block, in ``processes`` other processes at once.

    Returns the row and the reason of each image that cannot be decoded there. Raises `StorageError` if the store of the
    images cannot be used, and `DecoderError` if a process does not start.
    """
    lanes = [lane for start in range(processes) if (lane := images[start::processes])]

    def try_lane(lane: Sequence[ImageRef]) -> dict[int, str]:
        with DecoderProcess(
            image_size=features.image_size,
            max_pixels=inputs.max_pixels,
            sixteen_bit_white=inputs.sixteen_bit_white,
            timeout_s=inputs.decode_timeout_s,
        ) as decoder:
            return {image.row: _reason(decoder, image) for image in lane}

    with ThreadPoolExecutor(len(lanes), thread_name_prefix="try-images") as pool:
        return {row: reason for found in pool.map(try_lane, lanes) for row, reason in found.items() if reason}


def _reason(decoder: DecoderProcess, image: ImageRef) -> str:
    """Return why an image cannot be decoded; empty if it can, or if it cannot be read."""
    try:
        content = read_bytes(image.path)
    except (OSError, ValueError):
        return ""
    try:
        return decoder.try_image(content)
    except DecoderDiedError:
        # Something else may have killed the process, but hardly twice in a row at the same image.
        try:
            return decoder.try_image(content)
        except DecoderDiedError as error:
            return str(error)

"""Which images of a block must not be decoded where others are: they end the process, or hold it up for good.

An attempt at a block that died in its midst says nothing of which image it was, nor whether it was one at all. So each
image is tried in a process of its own kind, which its death tells exactly; halving the block would try them more often.
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
    """Try to decode every image of a block in other processes.

    Parameters
    ----------
    images
        The block.
    inputs, features
        The configuration.
    processes
        How many to try images in at a time.

    Returns
    -------
    dict
        Row to reason, of the images that can not be decoded there.

    Raises
    ------
    StorageError
        When the store of the images can not be used.
    DecoderError
        When such a process does not start.
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
    """Return why an image can not be decoded; nothing where it can, or can not be read."""
    try:
        content = read_bytes(image.path)
    except (OSError, ValueError):
        return ""
    try:
        return decoder.try_image(content)
    except DecoderDiedError:
        # Whoever kills or stops processes for reasons of their own does not hit the same image twice in a row.
        try:
            return decoder.try_image(content)
        except DecoderDiedError as error:
            return str(error)

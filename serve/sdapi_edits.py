"""What an img2img request of /sdapi/v1 changes of its image."""

from functools import partial

from bitdance_edge.runtime import Size
from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.edits import opaque_and_light, size_of, uploaded_change
from bitdance_edge.serve.pictures import file_of
from bitdance_edge.serve.sdapi_schema import ImageToImage
from bitdance_edge.serve.work import Change

STRENGTH = 0.75  # the web UI's default
FITS = ("stretch", "cover", "contain", "stretch")  # by resize_mode; 3 scales latents, which is stretching


def sd_change(fields: ImageToImage, model: Model) -> tuple[Size, Change]:
    """Decode the image and its mask, in this thread; the size is the model's nearest to the wanted or the image's own.

    Raises:
        ApiError: 400: they cannot be read, or are of different sizes.
    """
    image = file_of(fields.init_images[0], "init_images")
    if fields.width is None or fields.height is None:
        wanted = size_of(image, "init_images")
    else:
        wanted = Size(width=fields.width, height=fields.height)
    size = model.nearest(wanted)
    inverted = bool(fields.inpainting_mask_invert)
    change = uploaded_change(
        image,
        file_of(fields.mask, "mask") if fields.mask else None,
        size,
        fit=FITS[fields.resize_mode or 0],
        strength=STRENGTH if fields.denoising_strength is None else fields.denoising_strength,
        name="init_images",
        read=partial(opaque_and_light, inverted=inverted),
    )
    return size, change

"""The forms of /v1/images/edits and /v1/images/variations: files and fields as multipart/form-data."""

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import ConfigDict, Field

from bitdance_edge.serve.errors import ApiError
from bitdance_edge.serve.schema import MAX_CANDIDATES, MOST_TEXT, NO_MARKUP, Fit, ImageRequest, not_had

LENIENT = ConfigDict(strict=False, hide_input_in_errors=True)  # every value of a form is a text


class PictureForm(ImageRequest):
    """What both forms have. ``strength`` and ``fit`` are ours."""

    model_config = LENIENT

    image: list[UploadFile] = Field(default_factory=list, description="A PNG, JPEG or WebP file.", max_length=16)
    strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="How much is drawn anew, from 0 to 1; 1 by default with a mask, else 0.7."
    )
    fit: Fit = Field("cover", description="How an image of another size, and its mask, are brought to `size`.")

    def files(self) -> list[UploadFile]:
        return self.image

    def only_file(self) -> UploadFile:
        """The image. Raises: ApiError 400: there is none, or more than one."""
        files = self.files()
        if not files:
            raise ApiError(400, "missing_parameter", "image is missing; send it as a file of the form", param="image")
        if len(files) > 1:
            message = f"{len(files)} images are given; the models change one image at a time"
            raise ApiError(400, "invalid_value", message, param="image")
        return files[0]


class EditForm(PictureForm):
    model_config = LENIENT

    images: list[UploadFile] = Field(
        default_factory=list, alias="image[]", description="`image`, as clients name a list.", max_length=16
    )
    mask: UploadFile | None = Field(
        None,
        description="A file of the size of the image: transparent, or white and without transparency, where it is "
        "redrawn. Without it: where the image itself is transparent, or everywhere.",
    )
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = Field(
        1, description="Of so many drawings of each image, keep the one that fits best what the mask keeps after it."
    )
    input_fidelity: Literal["low", "high"] | None = Field(None, description="Accepted and ignored.")
    markup: Annotated[None, not_had(NO_MARKUP)] = None

    def files(self) -> list[UploadFile]:
        return [*self.image, *self.images]


class VariationForm(PictureForm):
    model_config = LENIENT

    prompt: str = Field(
        "",
        description="What the image shows; a PNG made here tells it itself.",
        max_length=MOST_TEXT,
    )

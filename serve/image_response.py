"""The answer of OpenAI's images API: all images at the end, or one server-sent event at a time."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bitdance_edge.serve.catalog import Model
from bitdance_edge.serve.connection import NamedEvent
from bitdance_edge.serve.pictures import encoded
from bitdance_edge.serve.schema import ImageData, ImageRequest, ImagesResponse, OutputFormat, TokenDetails, Usage
from bitdance_edge.serve.ticket import ImageReady, PatchReady, Ticket
from bitdance_edge.serve.work import Generation


class ImageResponse:
    """The response to one request: all images at the end, or one event at a time."""

    def __init__(self, fields: ImageRequest, work: Generation, model: Model) -> None:
        self.events_of = "image_generation" if work.change is None else "image_edit"
        self.format: OutputFormat = fields.output_format or "png"
        self.quality = fields.output_compression
        self.work, self.tokens = work, model.bundle.model.size(work.size).tokens

    async def whole(self, ticket: Ticket) -> ImagesResponse:
        images: dict[int, ImageData] = {}
        async with aclosing(ticket.events()) as events:
            async for event in events:
                if isinstance(event, ImageReady):
                    images[event.index] = ImageData(b64_json=await self._file(event), seed=event.image.seed)
        return ImagesResponse(
            created=int(time.time()),
            output_format=self.format,
            size=str(self.work.size),
            data=[images[i] for i in range(self.work.images)],
            usage=self._usage(self.work.images),
        )

    async def events(self, ticket: Ticket) -> AsyncGenerator[NamedEvent, None]:
        partials = [0] * self.work.images
        async with aclosing(ticket.events()) as events:
            async for event in events:
                if isinstance(event, PatchReady):
                    for image, pixels in event.previews.items():
                        file = await encoded(pixels, self.format, self.quality)
                        yield self._event("partial_image", image, file, partial_image_index=partials[image])
                        partials[image] += 1
                elif isinstance(event, ImageReady):
                    file = await self._file(event)
                    yield self._event("completed", event.index, file, usage=self._usage(1).model_dump())

    async def _file(self, ready: ImageReady) -> str:
        assert ready.image.pixels is not None  # the request asks for images, never for tokens alone
        return await encoded(ready.image.pixels, self.format, self.quality, ready.image.settings)

    def _event(self, name: str, image: int, file: str, **more: Any) -> NamedEvent:
        kind = f"{self.events_of}.{name}"
        return kind, {
            "type": kind,
            "b64_json": file,
            "created_at": int(time.time()),
            "size": str(self.work.size),
            "quality": "auto",
            "background": "opaque",
            "output_format": self.format,
            "image_index": image,
            "seed": self.work.seeds[image],
            **more,
        }

    def _usage(self, images: int) -> Usage:
        seen, made = images * self.work.prompt_tokens, images * self.tokens
        return Usage(
            input_tokens=seen,
            input_tokens_details=TokenDetails(text_tokens=seen, image_tokens=0),
            output_tokens=made,
            total_tokens=seen + made,
        )

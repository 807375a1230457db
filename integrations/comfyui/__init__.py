"""BitDance bundles as ComfyUI nodes: load, generate, encode, complete, decode, edit, save. For custom_nodes/."""

from .loading import LoadBundle, register_folder
from .nodes import Complete, Decode, Edit, Encode, Generate
from .saving import SaveImages

NODE_CLASS_MAPPINGS = {
    "BitDanceLoadBundle": LoadBundle,
    "BitDanceGenerate": Generate,
    "BitDanceEncode": Encode,
    "BitDanceComplete": Complete,
    "BitDanceDecode": Decode,
    "BitDanceEdit": Edit,
    "BitDanceSaveImages": SaveImages,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "BitDanceLoadBundle": "BitDance: load bundle",
    "BitDanceGenerate": "BitDance: generate",
    "BitDanceEncode": "BitDance: encode",
    "BitDanceComplete": "BitDance: complete",
    "BitDanceDecode": "BitDance: decode",
    "BitDanceEdit": "BitDance: edit",
    "BitDanceSaveImages": "BitDance: save images",
}

register_folder()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

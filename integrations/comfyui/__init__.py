"""BitDance bundles as ComfyUI nodes: load a bundle, generate, decode, edit. Copy or link into custom_nodes/."""

from .nodes import Decode, Edit, Generate, LoadBundle

NODE_CLASS_MAPPINGS = {
    "BitDanceLoadBundle": LoadBundle,
    "BitDanceGenerate": Generate,
    "BitDanceDecode": Decode,
    "BitDanceEdit": Edit,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "BitDanceLoadBundle": "BitDance: load bundle",
    "BitDanceGenerate": "BitDance: generate",
    "BitDanceDecode": "BitDance: decode",
    "BitDanceEdit": "BitDance: edit",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

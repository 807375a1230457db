"""BitDance bundles as ComfyUI nodes: load a bundle, generate tokens, decode them. Copy or link into custom_nodes/."""

from .nodes import Decode, Generate, LoadBundle

NODE_CLASS_MAPPINGS = {
    "BitDanceLoadBundle": LoadBundle,
    "BitDanceGenerate": Generate,
    "BitDanceDecode": Decode,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "BitDanceLoadBundle": "BitDance: load bundle",
    "BitDanceGenerate": "BitDance: generate",
    "BitDanceDecode": "BitDance: decode",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

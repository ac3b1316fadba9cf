"""Images of several domains: where they come from, their pixels, their split, their batches."""

from gradsurgery.data.batches import Batches, DomainBatches, SingleDomainBatches
from gradsurgery.data.cache import cache_folder, prepare
from gradsurgery.data.decode import decode_image
from gradsurgery.data.images import ImageSet, SkippedImage
from gradsurgery.data.normalize import normalize
from gradsurgery.data.presets import PRESETS, Preset
from gradsurgery.data.source import Source
from gradsurgery.data.specs import BUILT_IN, open_source
from gradsurgery.data.splits import Split, draw_split

__all__ = [
    "BUILT_IN",
    "PRESETS",
    "Batches",
    "DomainBatches",
    "ImageSet",
    "Preset",
    "SingleDomainBatches",
    "SkippedImage",
    "Source",
    "Split",
    "cache_folder",
    "decode_image",
    "draw_split",
    "normalize",
    "open_source",
    "prepare",
]

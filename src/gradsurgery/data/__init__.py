"""Images of several domains: where they come from, their pixels, their split, their batches."""

from gradsurgery.data.augmentation import Augmentation
from gradsurgery.data.batches import Batches, DomainBatches, SingleDomainBatches
from gradsurgery.data.cache import cpus, digest_of, prepare
from gradsurgery.data.decode import Preparation, decode_image, example_images
from gradsurgery.data.derived import PRESETS, Preset
from gradsurgery.data.formats import BadImageError
from gradsurgery.data.image_set import ImageSet, cache_folder
from gradsurgery.data.loader import ImageLoader, image_loader
from gradsurgery.data.open_source import BUILT_IN, open_source, reopened
from gradsurgery.data.pixels import normalize
from gradsurgery.data.source import SkippedImage, Source, unknown_domain
from gradsurgery.data.splits import Split, draw_split, split_of

__all__ = [
    "BUILT_IN",
    "PRESETS",
    "Augmentation",
    "BadImageError",
    "Batches",
    "DomainBatches",
    "ImageLoader",
    "ImageSet",
    "Preparation",
    "Preset",
    "SingleDomainBatches",
    "SkippedImage",
    "Source",
    "Split",
    "cache_folder",
    "cpus",
    "decode_image",
    "digest_of",
    "draw_split",
    "example_images",
    "image_loader",
    "normalize",
    "open_source",
    "prepare",
    "reopened",
    "split_of",
    "unknown_domain",
]

"""Data: image folders with stable ids, UC Merced, generated scenes, other libraries' data sets, and data by name."""

from __future__ import annotations

from xaieval.data.annotations import Annotations
from xaieval.data.images import Pictures, image_files, image_folder, scenes
from xaieval.data.loading import Data, import_factory, is_mosaics, load_data, load_mosaics, load_pictures, names_code
from xaieval.data.mosaics import Mosaics, mosaics
from xaieval.data.preprocessing import Preprocessing, Whole
from xaieval.data.scans import ScanPreprocessing, scan_folder
from xaieval.data.sources import arrays, huggingface, pairs
from xaieval.data.splits import Fold, block_folds, blocks_of, random_folds
from xaieval.data.uc_merced import ucmerced

__all__ = [
    "Annotations",
    "Data",
    "Fold",
    "Mosaics",
    "Pictures",
    "Preprocessing",
    "ScanPreprocessing",
    "Whole",
    "arrays",
    "block_folds",
    "blocks_of",
    "huggingface",
    "image_files",
    "image_folder",
    "import_factory",
    "is_mosaics",
    "load_data",
    "load_mosaics",
    "load_pictures",
    "mosaics",
    "names_code",
    "pairs",
    "random_folds",
    "scan_folder",
    "scenes",
    "ucmerced",
]

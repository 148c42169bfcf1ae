"""parvae: run a trained variational autoencoder anywhere onnxruntime runs.

import parvae

vae = parvae.load("model.vae")
codes = vae.encode(rows)
scores = vae.score(rows)
fresh = vae.sample(1000, seed=0)
"""

from parvae.errors import (
    BundleError,
    CorruptFileError,
    DataError,
    Error,
    MissingExtraError,
    SettingError,
    WrongModelError,
)
from parvae.model import VAE, load
from parvae.schema import Column, Role, Schema
from parvae.scores import Scores
from parvae.vaez.rows import compress, decompress

__all__ = [
    "VAE",
    "BundleError",
    "Column",
    "CorruptFileError",
    "DataError",
    "Error",
    "MissingExtraError",
    "Role",
    "Schema",
    "Scores",
    "SettingError",
    "WrongModelError",
    "compress",
    "decompress",
    "load",
]
__version__ = "0.1.0"

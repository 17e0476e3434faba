"""The network: vision tower, connector, decoder, and how they meet."""

from .connector import Connector
from .decoder import Decoder
from .model import Model
from .parameters import parameter_shapes
from .vision import VisionTower

__all__ = ["Connector", "Decoder", "Model", "VisionTower", "parameter_shapes"]

"""The network: vision tower, connector, decoder, and how they meet."""

from .connector import Connector
from .decoder import Decoder
from .model import Model
from .vision import VisionTower

__all__ = ["Connector", "Decoder", "Model", "VisionTower"]

"""Data sets by their field's name: texts, images, chats, and where they come from."""

from .chat import ChatDataset, load_chat
from .choices import Choices, load_choices
from .images import ImageDataset, load_images
from .sources import DataError
from .text import TextDataset, load_text

__all__ = [
    "ChatDataset",
    "Choices",
    "DataError",
    "ImageDataset",
    "TextDataset",
    "load_chat",
    "load_choices",
    "load_images",
    "load_text",
]

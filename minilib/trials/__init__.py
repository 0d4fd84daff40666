"""What can be measured: recipes, and for each the function that computes its rows.

One file per modality. Importing them imports nothing heavy: the site, the command line and claims
read recipes where there is no PyTorch; what computes imports what it needs when it is called.
"""

from . import audit, audit_chat, audit_images, chat, clip, costs, images, nulls, text

__all__ = [
    "audit",
    "audit_chat",
    "audit_images",
    "chat",
    "clip",
    "costs",
    "images",
    "nulls",
    "text",
]

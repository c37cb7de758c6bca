"""A trained model as other tools read it."""

from ldm.export.folder import ABOUT, export_folder

__all__ = ["ABOUT", "export_folder"]

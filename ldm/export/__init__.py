"""A trained model as other tools read it."""

from ldm.export.about import read_about
from ldm.export.folder import ABOUT, export_folder
from ldm.export.single_file import export_single_file

__all__ = ["ABOUT", "export_folder", "export_single_file", "read_about"]

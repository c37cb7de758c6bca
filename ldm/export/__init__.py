"""A trained model as other tools read it."""

from ldm.export.about import read_about
from ldm.export.adapter import adapter_files
from ldm.export.embedding import embedding_file
from ldm.export.folder import ABOUT, export_folder
from ldm.export.kohya import kohya_file
from ldm.export.lora import diffusers_files, write_files
from ldm.export.single_file import export_single_file

__all__ = [
    "ABOUT",
    "adapter_files",
    "diffusers_files",
    "embedding_file",
    "export_folder",
    "export_single_file",
    "kohya_file",
    "read_about",
    "write_files",
]

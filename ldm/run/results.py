"""From numbers to a choice: evaluation.json, metrics.csv, the export, the report."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import list_snapshots, load_snapshot
from ldm.checkpoint.files import discard, explain_disk_errors, read_json, remove, write_json
from ldm.checkpoint.snapshots import read_manifest
from ldm.config import Config
from ldm.errors import UserError
from ldm.evaluation.measured import Measured, fidelity_of, read_measured
from ldm.evaluation.pictures import ABOUT as PICTURES
from ldm.evaluation.pictures import HALVES, KINDS
from ldm.evaluation.select import Margins, select
from ldm.export import ABOUT, export_folder
from ldm.models.base import BaseModel
from ldm.run.evaluate import BASE, FOLDER, Evaluator
from ldm.run.settings import as_trained
from ldm.sampling.metadata import versions

log = logging.getLogger(__name__)

RESULT, EXPORT, REPORT = "evaluation.json", "export", "report.html"

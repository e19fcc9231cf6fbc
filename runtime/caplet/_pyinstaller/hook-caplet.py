"""What an app by PyInstaller has of caplet besides what it finds: the model, and modules whose names are made up."""

from __future__ import annotations

import importlib.util
import pkgutil

import caplet
from caplet.bundle import default_bundle
from caplet.image_file import HEIC_PACKAGES

datas = [(str(default_bundle()), f"caplet/models/{default_bundle().name}")]
hiddenimports = [f"caplet.{module.name}" for module in pkgutil.iter_modules(caplet.__path__) if not module.ispkg]
hiddenimports += filter(importlib.util.find_spec, HEIC_PACKAGES)

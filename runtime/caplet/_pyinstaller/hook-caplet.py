"""What an app by PyInstaller has of caplet besides what it finds: model, licence, and modules with made-up names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pkgutil

import caplet
from caplet.bundle import default_bundle
from caplet.image_formats import HEIC_PACKAGE

datas = [(str(default_bundle()), f"caplet/models/{default_bundle().name}")]
for installed in importlib.metadata.distributions(name="caplet"):
    datas += [(str(file.locate()), "caplet") for file in installed.files or () if file.name == "LICENSE"]
hiddenimports = [f"caplet.{module.name}" for module in pkgutil.iter_modules(caplet.__path__) if not module.ispkg]
hiddenimports += [HEIC_PACKAGE] if importlib.util.find_spec(HEIC_PACKAGE) else []

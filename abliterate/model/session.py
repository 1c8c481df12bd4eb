"""A model of a run: its folder's facts at once, its weights on first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from abliterate.config import ModelConfig
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.passes import Model
from abliterate.model.resident import load_model


class Session:
    """Loads the model when it is first needed, and lets go of it when told."""

    def __init__(self, config: ModelConfig, path: Path) -> None:
        self._config = config
        self.folder: ModelFolder = open_folder(path, config.trust_remote_code, config.layout_file)

    @cached_property
    def model(self) -> Model:
        config = self._config
        return load_model(self.folder.path, config.dtype, config.device, config.trust_remote_code, config.layout_file, config.batch_size)

    def release(self) -> None:
        """Free the weights; they come back on the next use."""
        self.__dict__.pop("model", None)

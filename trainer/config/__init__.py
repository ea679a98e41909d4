"""The configuration of a run: one tree, its checks, and the text that it is read from."""

from trainer.config.load import dump_config, load_config, load_run_config
from trainer.config.schema import RunConfig

__all__ = ["RunConfig", "dump_config", "load_config", "load_run_config"]

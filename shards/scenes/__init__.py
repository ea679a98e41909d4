"""A small rendered question-answering set in GQA's format: everything a first run, a test or a demo needs."""

from shards.scenes.command import add_scenes_parser, scene_files, write_scenes

__all__ = ["add_scenes_parser", "scene_files", "write_scenes"]

"""Small rendered sets in the formats of GQA, VQA v2, NLVR2 and SNLI-VE: what a first run, a test or a demo needs."""

from shards.scenes.command import add_scenes_parser, scene_files, task_files, write_scenes

__all__ = ["add_scenes_parser", "scene_files", "task_files", "write_scenes"]

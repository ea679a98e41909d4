"""What each task of `shards.tasks.TASKS` measures: the file of its name here holds TASK."""

from importlib import import_module

from trainer.tasks.seam import Outputs, Submission, Task


def task_named(name: str) -> Task:
    """What a task measures."""
    return import_module(f"trainer.tasks.{name}").TASK


__all__ = ["Outputs", "Submission", "Task", "task_named"]

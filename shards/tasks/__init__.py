"""The tasks that shards can be read for: TASKS is the only list of them."""

from shards.tasks import gqa
from shards.tasks.seam import TaskData

TASKS: dict[str, TaskData] = {
    "gqa": gqa.DATA,
}

__all__ = ["TASKS", "TaskData"]

"""The tasks that shards can be read for: TASKS is the only list of them."""

from shards.tasks import gqa, lxmert, mpdocvqa, mpdocvqa_retrieval, nlvr2, snli_ve, vqa
from shards.tasks.seam import TaskData

TASKS: dict[str, TaskData] = {
    "gqa": gqa.DATA,
    "vqa": vqa.DATA,
    "snli_ve": snli_ve.DATA,
    "nlvr2": nlvr2.DATA,
    "lxmert": lxmert.DATA,
    "mpdocvqa": mpdocvqa.DATA,
    "mpdocvqa_retrieval": mpdocvqa_retrieval.DATA,
}

__all__ = ["TASKS", "TaskData"]

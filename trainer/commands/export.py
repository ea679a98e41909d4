"""The `export` verb: a copy of an export, with what somebody else needs of it."""

import argparse
from pathlib import Path
from typing import Any

from shards.progress import say
from trainer.export.run_arguments import check_run


def add_export_parser(verbs: Any) -> None:
    """Add `export`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "export",
        description="Copy the export of a run, or an export. A copy works wherever a run's model does: duoflow answer, "
        "duoflow evaluate, initialize_from, duoflow.load.",
        epilog="duoflow export runs/my_run --out exported",
    )
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME, or that of an export"
    )
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="a directory that is not there yet")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="merge LoRA adapters into the checkpoints that they adapt, which then load with transformers alone",
    )
    parser.add_argument(
        "--with-frozen", action="store_true", help="put checkpoints that were not trained into the copy, too"
    )
    parser.add_argument("--onnx", action="store_true", help="add the fusion encoder as ONNX, checked with onnxruntime")
    parser.add_argument("--torch-export", action="store_true", help="add the fusion encoder as a graph of torch.export")
    parser.add_argument("--license", metavar="ID", help="license of what was trained, such as apache-2.0, for the card")
    parser.add_argument(
        "--hub", metavar="OWNER/NAME", help="make it a repository of the hub, and say how it is uploaded"
    )
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)

    from trainer.export.merge import CopyRequest, copy_export  # after the run was found: it imports torch

    request = CopyRequest(
        merge=arguments.merge,
        with_frozen=arguments.with_frozen,
        graphs=[form for form, asked in (("onnx", arguments.onnx), ("torch", arguments.torch_export)) if asked],
        license_id=arguments.license,
        hub=arguments.hub,
    )
    for line in copy_export(arguments.run, arguments.out, request=request):
        say(line)
    return 0

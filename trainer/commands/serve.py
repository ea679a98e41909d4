"""The `serve` verb: a local page that asks a model."""

import argparse
from pathlib import Path
from typing import Any

from shards.progress import say
from trainer.export.run_arguments import check_run


def add_serve_parser(verbs: Any) -> None:
    """Add `serve`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "serve",
        description="Load the model of a run or an export once, and answer questions about photos on a page of this "
        "machine, and as JSON. Ctrl-C ends it.",
        epilog="duoflow serve runs/my_run --port 8000",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME, or an export")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="values that the run leaves open, such as model.guidance.*"
    )
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="where to listen; 0 takes a free one")
    parser.add_argument(
        "--address", metavar="IP", default="127.0.0.1", help="whom to listen to; 0.0.0.0 lets every machine ask"
    )
    parser.set_defaults(handler=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)

    from trainer.inference.serve import Server, load_asking, reply_about  # after the run was found: it imports torch

    def reply(data: bytes, question: str) -> dict[str, Any]:
        return reply_about(asking, data, question)

    with Server(arguments.address, arguments.port, reply) as server:  # a port that is taken is said before loading
        asking = load_asking(arguments.run, tuple(arguments.overrides))
        if not server.local:
            say(f"note: --address {arguments.address}: whoever reaches this machine can ask; there is no password")
        say(f"{arguments.run} answers at {server.url}  (Ctrl-C ends it)")
        server.serve_forever()
    return 0

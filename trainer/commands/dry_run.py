"""`duoflow train --dry-run`: what a run would do and need, worked out without training a step."""

import json
from collections import Counter
from collections.abc import Mapping

from model.objective import Objective
from trainer.build import assemble_model, classes_of, open_split, training_tokenizer
from trainer.commands.start import check_previous, check_unoccupied
from trainer.config import RunConfig
from trainer.config.schema import check_world_size
from trainer.engine.deepspeed_config import resolve_precision
from trainer.engine.policy_choice import AUTO
from trainer.run_directory import RunDirectory
from trainer.training.caveats import caveats
from trainer.training.lost_answers import lost_answers
from trainer.training.milestones import Milestones
from trainer.training.policy import choice_on_this_machine
from trainer.training.preflight import Machine, preflight
from trainer.training.room import check_disk

_ADAM_TENSORS = 3
"""fp32 copies that a checkpoint holds of every trained parameter: itself and Adam's two moments."""
_KEPT_CHECKPOINTS = 3
"""`last`, `best`, and the one being written."""


def dry_run(config: RunConfig, *, fresh: bool = False, as_json: bool = False) -> str:
    """Steps, visits, parameters and disk of a run as a table, after every check that a real start makes.

    Args:
        fresh: a run of that name would be set aside.
        as_json: give a list of {"name", "value"} in place of lines.

    Raises:
        UserError: what would keep the run from starting.
    """
    run = RunDirectory.of(config)
    logged, finished = check_previous(run, config, fresh=fresh)
    machine = preflight(config, fresh=fresh)
    check_unoccupied(run)
    train = open_split(config, "train")
    built = assemble_model(
        config,
        scratch_tokenizer=lambda: training_tokenizer(config, train),
        classes=classes_of(config, train.index),
    )
    milestones = Milestones.of(config, train.steps_per_epoch)
    objective = built.objective
    trained = _trained(objective)
    total = sum(trained.values())
    questions, visits = int(train.visits.num_questions.sum()), len(train.visits)
    padding = milestones.steps_per_epoch * config.batch.visits - visits
    checkpoint = _ADAM_TENSORS * 4 * total
    rows = [
        ("images", f"{int((train.visits.num_questions > 0).sum()):,}"),
        ("questions per epoch", f"{questions:,}"),
        ("visits per epoch", f"{visits:,} of at most {config.data.questions_per_visit} questions, {padding} padding"),
        ("steps", f"{milestones.steps_per_epoch:,} per epoch, {milestones.total_steps:,} in all"),
        ("validations", f"{milestones.total_validations:,}"),
        ("ranks", f"{machine.processes} on {'GPU' if machine.gpus else 'CPU'}"),
        ("visits per step", f"{config.batch.visits} = {_batch_arithmetic(config, machine.processes)}"),
        ("parameters trained", f"{total:,} ({_list(trained)})"),
        ("parameters frozen", _list(objective.frozen_counts()) or "0"),
        (
            "disk",
            f"{_megabytes(checkpoint)} per checkpoint, at most {_megabytes(_KEPT_CHECKPOINTS * checkpoint)} at once",
        ),
    ]
    if config.engine.policy == AUTO:
        rows.append(("engine.policy", _choice(config, machine, objective, total)))
    if built.answer_codec is not None and (lost := lost_answers(built.answer_codec, train.index.answers)):
        rows.append(("answers lost", lost))
    check_disk(run, _KEPT_CHECKPOINTS * checkpoint)
    rows += [("note", note) for note in caveats(config, None if fresh else run.read_config())]
    rows += [("goes on with", str(difference)) for difference in logged]
    if finished is not None:
        rows.append(("finished", finished))
    if as_json:
        return json.dumps([{"name": name, "value": value} for name, value in rows], indent=1, ensure_ascii=False)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _batch_arithmetic(config: RunConfig, processes: int) -> str:
    accumulation = check_world_size(config, processes)
    if config.batch.micro_tokens is not None:
        return f"{processes} ranks x micro-batches of at most {config.batch.micro_tokens} padded tokens"
    if config.batch.micro_visits == "auto":
        return f"{processes} ranks x micro-batches of as many visits as the device has memory for"
    return f"{processes} ranks x {accumulation} micro-batches x {config.batch.micro_visits} visits"


def _choice(config: RunConfig, machine: Machine, objective: Objective, parameters: int) -> str:
    device_type = "cuda" if machine.gpus else "cpu"
    choice = choice_on_this_machine(
        config,
        parameters=parameters,
        precision=resolve_precision(config.precision, device_type, too_wide=objective.too_wide_for_fp16),
        ranks=machine.processes,
        device_type=device_type,
    )
    return f"auto: {choice}"


def _trained(objective: Objective) -> Counter[str]:
    """Parameters by part; what two parts share counts once."""
    counts: Counter[str] = Counter()
    for name, parameter in objective.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return counts


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"

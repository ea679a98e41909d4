"""Values that are right one by one and cannot stand together: every contradiction within a configuration."""

import difflib
from collections.abc import Iterator

from model.config import EfficientSamConfig, LossConfig, ModelConfig, text_towers, untrained_towers, vision_references
from model.parts import PARTS
from model.references import EFFICIENT_SAM, SCRATCH, TIMM, read_reference
from shards.read.augment import augment_fault
from shards.remote.address import is_url, url_fault
from shards.tasks import TASKS
from trainer.config.faults import Fault
from trainer.config.reader_checks import reader_faults
from trainer.config.retrieval_checks import ranks_pages, retrieval_faults
from trainer.config.schema import RunConfig
from trainer.config.vlm_checks import vlm_faults
from trainer.engine.optimizers import argument_faults, name_fault
from trainer.engine.schedules import schedule_faults
from trainer.tasks import task_named
from trainer.tasks.parts import part_metrics

_CUSTOM_SIZES = ("image_size", "patch_size", "width", "depth", "heads", "neck_width")


def cross_faults(config: RunConfig) -> tuple[Fault, ...]:
    """Everything that contradicts something else."""
    checks = (_validation, _batch, _optim, _augment, _places, _losses, _answers, _start_answers, _retrieved, _metric)
    of_fusion = (_fusion, _scratch, _libraries, _efficient_sam, _frozen, _shared, _lora, _guided)
    if config.task not in TASKS:
        return (_unknown_task(config.task),)
    if config.model.reader is not None:
        return tuple(fault for check in (*checks, _lora, reader_faults) for fault in check(config))
    if ranks_pages(config):
        return tuple(fault for check in (*checks, retrieval_faults) for fault in check(config))
    if config.model.vlm is None and TASKS[config.task].images is None:
        shown = f"is null, and task {config.task} shows documents of any number of pages"
        return (Fault("model.vlm", f"{shown}; name a vision-language model, or set model.reader"),)
    checks += of_fusion if config.model.vlm is None else (vlm_faults,)
    return tuple(fault for check in checks for fault in check(config))


def _unknown_task(task: str) -> Fault:
    near = difflib.get_close_matches(task, TASKS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return Fault("task", f"expected one of {', '.join(TASKS)}{hint}, got {task}")


def recorded_metrics(task: str, losses: LossConfig) -> tuple[str, ...]:
    """Names of the metrics that a run of this task records and that can decide which checkpoint is best."""
    weighted = [part for part in TASKS[task].reads if getattr(losses, part) > 0]
    measured = (f"val/{name}" for name in task_named(task).metrics(losses))
    return ("train/loss", "val/loss", *part_metrics(weighted), *measured)


def _validation(config: RunConfig) -> Iterator[Fault]:
    every = config.validate_every
    if every.epochs is not None and every.steps is not None:
        yield Fault(
            "validate_every", f"epochs={every.epochs} and steps={every.steps} are both set; set one of them to null"
        )


def _batch(config: RunConfig) -> Iterator[Fault]:
    visits, micro_visits, lanes = config.batch.visits, config.batch.micro_visits, config.batch.resolved_lanes
    if micro_visits is None and config.batch.micro_tokens is None:
        yield Fault("batch.micro_visits", "is null; set it, or batch.micro_tokens in its place")
    if micro_visits is not None and config.batch.micro_tokens is not None:
        yield Fault(
            "batch.micro_tokens",
            f"{config.batch.micro_tokens} stands in place of batch.micro_visits, which is {micro_visits}; set one of "
            "them to null",
        )
    if isinstance(micro_visits, int) and visits % micro_visits:
        yield Fault(
            "batch.micro_visits",
            f"{micro_visits} does not divide batch.visits {visits}; nearest: {_nearest(visits, micro_visits)}",
        )
    if visits % lanes:
        yield Fault("batch.lanes", f"{lanes} does not divide batch.visits {visits}; nearest: {_nearest(visits, lanes)}")


def _optim(config: RunConfig) -> Iterator[Fault]:
    optim = config.optim
    for position, beta in enumerate(optim.betas or ()):
        if not 0.0 <= beta < 1.0:
            yield Fault(f"optim.betas[{position}]", f"expected from 0 to less than 1, got {beta}")
    unknown = name_fault(optim.name)
    if unknown is not None:
        yield Fault("optim.name", unknown)
    else:
        yield from (Fault(f"optim.{key}", message) for key, message in argument_faults(optim.choice))
    for key, message in schedule_faults(optim.schedule, optim.schedule_options, optim.final_lr_ratio):
        yield Fault(f"optim.{key}", message)
    whole = config.model.vlm is not None or config.model.reader is not None or ranks_pages(config)
    if optim.layer_decay is not None and (whole or not _trained_towers(config)):
        yield Fault(
            "optim.layer_decay",
            f"{optim.layer_decay} has no effect while all towers are frozen; take one out of model.freeze, or set it "
            "to null",
        )


def _augment(config: RunConfig) -> Iterator[Fault]:
    augment = config.data.augment
    if augment is None:
        return
    if (fault := augment_fault(augment)) is not None:
        yield Fault("data.augment", fault)
    elif not TASKS[config.task].augments:
        yield Fault("data.augment", f"{augment}: task {config.task} tells images apart by their side; set it to null")


def _trained_towers(config: RunConfig) -> set[str]:
    model = config.model
    second = {"second_stream"} if model.second_stream != "none" else set()
    return ({"vision"} | second | text_towers(TASKS[config.task], config.losses)) - set(model.freeze)


def _places(config: RunConfig) -> Iterator[Fault]:
    """URLs that could not be read, or must not be written into a file."""
    for split in ("train", "val", "testdev", "test", "challenge"):
        place = getattr(config.data, split)
        if place is not None and is_url(place) and (fault := url_fault(place)) is not None:
            yield Fault(f"data.{split}", fault)


def _losses(config: RunConfig) -> Iterator[Fault]:
    losses, task = config.losses, TASKS[config.task]
    for part in PARTS:
        if getattr(losses, part) > 0 and part not in task.reads:
            yield Fault(
                f"losses.{part}", f"task {config.task} has no such loss; set it to 0 (it has: {', '.join(task.reads)})"
            )
    if all(getattr(losses, part) == 0 for part in task.reads):
        names = " and ".join(task.reads)
        both = "is 0" if len(task.reads) == 1 else "are both 0" if len(task.reads) == 2 else "are all 0"
        yield Fault("losses", f"{names} {both}, so nothing would be trained; give one of them a weight")
    if losses.itm > 0 and "itm" in task.reads and not losses.negatives:
        yield Fault(
            "losses.negatives", "is empty while losses.itm > 0: matching needs wrong pairs; name answer or question"
        )


def _answers(config: RunConfig) -> Iterator[Fault]:
    by, needed = config.answers.by, {"generate": "answer", "rank": "answer", "classify": "classify"}
    if by is not None and config.task != "vqa":
        yield Fault("answers.by", f"{by} has no effect on task {config.task}; remove it")
    elif by is not None and getattr(config.losses, needed[by]) == 0:
        yield Fault("answers.by", f"{by} needs what losses.{needed[by]} trains, and that is 0; give it a weight")


def _start_answers(config: RunConfig) -> Iterator[Fault]:
    answers, key = config.answers, "answers.start_from"
    if answers.start_from is None:
        if answers.start_list is not None:
            yield Fault("answers.start_list", "has no effect without answers.start_from; remove it, or set both")
        return
    if TASKS[config.task].classes is not None or config.losses.classify == 0:
        yield Fault(key, "gives weights to a head over answers, and this recipe trains none; set it to null")
    if config.model.head != "lxmert":
        yield Fault(key, f"is a head of LXMERT's form, and model.head is {config.model.head}; set that to lxmert")


def _retrieved(config: RunConfig) -> Iterator[Fault]:
    if config.data.retrieved is not None and config.task != "mpdocvqa":
        yield Fault(
            "data.retrieved", f"has no effect on task {config.task}, which reads no windows of pages; remove it"
        )


def _metric(config: RunConfig) -> Iterator[Fault]:
    metric, mode = config.early_stopping.metric, config.early_stopping.mode
    recorded = recorded_metrics(config.task, config.losses)
    all_parts = config.losses.model_copy(update=dict.fromkeys(TASKS[config.task].reads, 1.0))
    if metric not in recorded_metrics(config.task, all_parts):
        near = difflib.get_close_matches(metric, recorded, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        yield Fault("early_stopping.metric", f"{metric} is not recorded; {hint}recorded: {', '.join(recorded)}")
        return
    if metric not in recorded and config.data.val is not None:
        missing = next(
            part
            for part in TASKS[config.task].reads
            if metric in recorded_metrics(config.task, config.losses.model_copy(update={part: 1.0}))
        )
        yield Fault(
            "early_stopping.metric",
            f"{metric} is not recorded when losses.{missing} is 0; recorded: {', '.join(recorded)}",
        )
    if config.early_stopping.patience is not None and config.data.val is None:
        yield Fault(
            "early_stopping.patience", "counts validations, but data.val is null; set data.val, or patience to null"
        )
    better = "min" if metric.endswith("loss") else "max"
    if mode != better:
        yield Fault("early_stopping.mode", f"{mode} would keep the worst checkpoint by {metric}; set it to {better}")


def _fusion(config: RunConfig) -> Iterator[Fault]:
    fusion, model = config.model.fusion, config.model
    if fusion.name == "sum":
        return
    if fusion.name == "concatenation" and model.second_stream == "none":
        yield Fault(
            "model.fusion.name", "concatenation needs two streams; name a model.second_stream, or set it to difnet"
        )
    if fusion.name == "difnet" and fusion.separate_layers >= fusion.layers:
        yield Fault(
            "model.fusion.separate_layers",
            f"{fusion.separate_layers} leaves no layer behind the sum; expected less than model.fusion.layers "
            f"{fusion.layers}",
        )
    width = model.scratch.width if fusion.width is None and model.vision == SCRATCH else fusion.width
    if width is not None and width % fusion.heads:
        yield _heads_fault("model.fusion.heads", fusion.heads, width)


def _scratch(config: RunConfig) -> Iterator[Fault]:
    scratch = config.model.scratch
    if scratch.image_size % scratch.patch_size:
        yield _patch_fault("model.scratch.patch_size", scratch.patch_size, scratch.image_size)
    if scratch.width % scratch.heads:
        yield _heads_fault("model.scratch.heads", scratch.heads, scratch.width)


def _libraries(config: RunConfig) -> Iterator[Fault]:
    """Only vision towers come from timm, and a second one has to be of the kind that its stream names."""
    model = config.model
    for part in ("match", "answer"):
        if read_reference(getattr(model, part)).is_timm:
            yield Fault(f"model.{part}", f"{getattr(model, part)} reads no text; expected a checkpoint of transformers")
    if model.vision == EFFICIENT_SAM:
        yield from _first_efficient_sam(model)
    if model.second_stream not in ("blip", "timm"):
        return
    is_timm = read_reference(model.second_vision).is_timm
    if is_timm and model.second_stream == "blip":
        yield Fault("model.second_stream", f"blip, but model.second_vision is {model.second_vision}; set it to timm")
    if not is_timm and model.second_stream == "timm":
        yield Fault(
            "model.second_vision",
            f"{model.second_vision} is no backbone of timm; expected {TIMM}NAME.TAG, {TIMM}hf-hub:OWNER/NAME or "
            f"{TIMM}./DIR, or set model.second_stream=blip",
        )


def _first_efficient_sam(model: ModelConfig) -> Iterator[Fault]:
    if model.second_stream.startswith(EFFICIENT_SAM):
        yield Fault("model.second_stream", "is EfficientSAM, as model.vision is; name another encoder in one of them")
    if "vision" not in model.freeze:
        yield Fault("model.freeze", "lacks vision, and EfficientSAM as first stream is not trained; add it")


def _efficient_sam(config: RunConfig) -> Iterator[Fault]:
    tower = config.model.efficient_sam
    sizes = {name: getattr(tower, name) for name in _CUSTOM_SIZES}
    if tower.variant != "custom":
        for name, size in sizes.items():
            if size is not None:
                message = f"{size} has no effect on variant {tower.variant}; remove it, or set variant to custom"
                yield Fault(f"model.efficient_sam.{name}", message)
        return
    missing = [name for name, size in sizes.items() if size is None]
    if tower.checkpoint is not None and len(missing) == len(sizes):
        return  # a .safetensors of our own says its sizes
    for name in missing:
        yield Fault(f"model.efficient_sam.{name}", "is not set; variant custom needs it")
    if not missing:
        yield from _custom_sizes(tower)


def _custom_sizes(tower: EfficientSamConfig) -> Iterator[Fault]:
    assert tower.image_size is not None
    assert tower.patch_size is not None
    assert tower.width is not None
    assert tower.heads is not None
    if tower.image_size % tower.patch_size:
        yield _patch_fault("model.efficient_sam.patch_size", tower.patch_size, tower.image_size)
    if tower.width % tower.heads:
        yield _heads_fault("model.efficient_sam.heads", tower.heads, tower.width)


def _frozen(config: RunConfig) -> Iterator[Fault]:
    untrained = untrained_towers(config.model, text_towers(TASKS[config.task], config.losses))
    for part in [part for part in config.model.freeze if part in untrained]:
        reference = _second_reference(config) if part == "second_stream" else f"model.{part}"
        yield Fault(
            "model.freeze",
            f"{part} starts from random weights and would stay so: an untrained frozen tower; take it out of "
            f"model.freeze, or name trained weights in {reference}",
        )


def _second_reference(config: RunConfig) -> str:
    key, _ = vision_references(config.model).get("second_stream", ("model.efficient_sam.checkpoint", ""))
    return key


def _shared(config: RunConfig) -> Iterator[Fault]:
    model, both_used = config.model, len(text_towers(TASKS[config.task], config.losses)) == 2
    if both_used and model.match == model.answer and ("match" in model.freeze) != ("answer" in model.freeze):
        yield Fault(
            "model.freeze",
            f"model.match and model.answer both name {model.match} and share its text encoder; freeze both or neither",
        )


def _lora(config: RunConfig) -> Iterator[Fault]:
    used = text_towers(TASKS[config.task], config.losses)
    for part in ("match", "answer"):
        lora, key = getattr(config.model.lora, part), f"model.lora.{part}"
        if lora.rank == 0:
            if lora.targets:
                yield Fault(f"{key}.rank", "is 0 while targets are named, so nothing is adapted; set it, such as to 8")
            continue
        if not lora.targets:
            yield Fault(f"{key}.targets", "is empty; name linear layers, such as [query, value] (BLIP) or [q, v] (T5)")
        if part not in config.model.freeze:
            yield Fault(key, f"{part} is trained whole already; put it into model.freeze, or set rank to 0")
        if part not in used:
            yield Fault(key, f"{part} is not used, since its loss has weight 0; give it a weight, or set rank to 0")


def _guided(config: RunConfig) -> Iterator[Fault]:
    model = config.model
    if model.second_stream != "efficient_sam_masks":
        return
    key = "model.second_stream"
    if not {"itm", "answer"} <= TASKS[config.task].reads.keys():
        yield Fault(key, f"efficient_sam_masks looks with questions and their answers, which task {config.task} lacks")
        return
    for part in {"match", "second_stream"} - set(model.freeze):
        yield Fault(key, f"efficient_sam_masks looks through the {part} tower as it was loaded; put it in model.freeze")
    if model.lora.match.rank:
        yield Fault(key, "efficient_sam_masks looks through the match tower as it was loaded; set its rank to 0")
    for loss in ("itm", "answer"):
        if getattr(config.losses, loss) == 0:
            yield Fault(key, f"efficient_sam_masks needs both towers of text; give losses.{loss} a weight")
    if model.guidance.blend == 0:
        yield Fault("model.guidance.blend", "is 0, so that no mask weighs anything; use second_stream=efficient_sam")


def _heads_fault(key: str, heads: int, width: int) -> Fault:
    return Fault(key, f"{heads} does not divide the width {width}; nearest: {_nearest(width, heads)}")


def _patch_fault(key: str, patch_size: int, image_size: int) -> Fault:
    return Fault(
        key, f"{patch_size} does not divide the image size {image_size}; nearest: {_nearest(image_size, patch_size)}"
    )


def _nearest(number: int, wrong: int) -> str:
    """The divisors of `number` on both sides of one that is not."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below = [divisor for divisor in divisors if divisor < wrong][-1:]
    above = [divisor for divisor in divisors if divisor > wrong][:1]
    return ", ".join(str(divisor) for divisor in below + above)

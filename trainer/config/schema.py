"""A run as one frozen tree: what the tree says is all that a run knows."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from model.config import (
    AnswersConfig,
    LossConfig,
    ModelConfig,
    PnpConfig,
    ReaderConfig,
    RetrievalConfig,
    VlmConfig,
)
from shards.config import DataConfig
from shards.config_base import Section
from shards.errors import ConfigError
from shards.plan import Order, Share, accumulation_steps, default_lanes
from trainer.engine.optimizers import DEFAULT, OptimizerChoice
from trainer.engine.schedules import ScheduleName

REPOSITORY = Path(__file__).resolve().parents[2]
"""Where the packages lie; `ds_configs/` and `recipes/` are beside them in a checkout."""


EVALUATED_AT_ONCE = 4
"""Visits of an evaluation's micro-batch where `batch.micro_visits` is `auto` and nobody has planned."""


class RunSection(Section):
    """What the run is called and where it lives."""

    name: str | None = Field(default=None, pattern=r"^[\w+=@][\w.+=@-]*$", max_length=100)
    """The run's directory is `run.directory`/`run.name`; null is the recipe's file name without its ending."""
    directory: str = Field(default="runs", min_length=1)
    """The directory of all runs."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """Decides initial weights, order, dropout and negatives."""


class BatchConfig(Section):
    """Batch sizes in visits (one image with at most `data.questions_per_visit` questions each)."""

    visits: int = Field(ge=1)
    """B: visits of one optimizer step, over all ranks."""
    micro_visits: Annotated[int, Field(ge=1)] | Literal["auto"] | None
    """m: visits that a rank computes at a time; divides B / ranks, and the quotient is accumulated. `auto` is the most
    that the device has memory for (docs/performance.md)."""
    micro_tokens: int | None = Field(default=None, ge=1)
    """In place of `micro_visits`: tokens that the questions of a micro-batch are padded to, at most. Visits of like
    lengths go together, and steps have as many micro-batches as they need."""
    lanes: int | None = Field(default=None, ge=1)
    """L: pieces that an epoch is cut into; the number of ranks divides it. Null is B's largest divisor up to 64."""

    @model_validator(mode="before")
    @classmethod
    def _tokens_in_place_of_visits(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("micro_tokens") is not None:
            return {"micro_visits": None, **values}
        return values

    @property
    def least_visits(self) -> int:
        """m, or where it is still open the least that it can be."""
        return self.micro_visits if isinstance(self.micro_visits, int) else 1

    @property
    def resolved_lanes(self) -> int:
        """L with its default filled in."""
        return default_lanes(self.visits) if self.lanes is None else self.lanes


class OptimConfig(Section):
    """The optimizer, and the course of its learning rate: by default AdamW, and a linear warm-up before half a cosine.

    docs/optim.md says which optimizers and schedules there are, and what becomes of them under ZeRO.
    """

    name: str = DEFAULT
    """timm's name of an optimizer, such as `adopt`, `lion` or `nadamw`; under ZeRO 1 to 3 the element-wise ones."""
    options: dict[str, Any] = Field(default={})
    """Further arguments of timm's optimizer by their names, such as `optim.options.momentum=0.95`."""
    lr: float = Field(default=1e-4, gt=0.0)
    """Learning rate at the end of the warm-up."""
    schedule: ScheduleName = "cosine"
    """Its course; those of timm go by optimizer steps."""
    schedule_options: dict[str, Any] = Field(default={})
    """Further arguments of timm's schedule, such as `optim.schedule_options.decay_t=1000` of `timm_step`."""
    layer_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    """Learning rate of each layer of an unfrozen tower as a part of that of the layer above; null has none."""
    final_lr_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end of the run, as a part of `lr`."""
    betas: tuple[float, ...] | None = None
    """Decay of the optimizer's moments, each from 0 to less than 1; null is its own: 0.9 and 0.999 of AdamW."""
    eps: float | None = Field(default=None, gt=0.0)
    """The optimizer's guard against division by 0; null is its own: 1.0e-08 of AdamW."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    """Weight decay of matrices, decoupled where the optimizer has it so."""
    warmup_steps: int = Field(default=100, ge=0)
    """Optimizer steps below `lr` at the beginning."""
    max_grad_norm: float | None = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this global norm; null never clips."""

    @property
    def choice(self) -> OptimizerChoice:
        """The optimizer, for the engine."""
        return OptimizerChoice(name=self.name, betas=self.betas, eps=self.eps, options=self.options)


class EngineConfig(Section):
    """DeepSpeed, and the processes that it runs in."""

    policy: str = Field(default="ds_configs/zero1.json", min_length=1)
    """File with the ZeRO policy, from the working directory or else from the repository; or `auto`: docs/scaling.md."""
    link_gbits: float | None = Field(default=None, gt=0.0)
    """Gbit/s of a host's network, which `policy: auto` goes by; null asks the system."""
    processes: int | None = Field(default=None, ge=1)
    """Ranks on this machine, with GPUs at most one for each; null is one per GPU, or 1 without a GPU."""
    timeout_seconds: int = Field(default=600, ge=1)
    """How long a rank waits for the others before it gives up."""
    start_timeout_seconds: int = Field(default=120, ge=1)
    """How long ranks wait for each other to come, at the start."""
    heartbeat_seconds: float = Field(default=10.0, gt=0.0)
    """Seconds between two signs of life of a rank; one that has given none for three times as long is named."""


class ValidateEvery(Section):
    """When to validate: after so many epochs or so many optimizer steps, not both. Null for both is every epoch."""

    epochs: int | None = Field(default=None, ge=1)
    """Epochs between validations."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations; the end of the run validates as well."""
    max_images: int | None = Field(default=None, ge=1)
    """Images of a validation, hash-chosen and always the same ones; null is all."""

    @model_validator(mode="before")
    @classmethod
    def _every_epoch(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": 1}
        return values


class EarlyStoppingConfig(Section):
    """Which validation is the best, and when to stop waiting for a better one."""

    metric: str = "val/accuracy"
    """The metric that decides which checkpoint is `best`."""
    mode: Literal["max", "min"] = "max"
    """Whether more is better (accuracies) or less (losses)."""
    patience: int | None = Field(default=None, ge=1)
    """Validations without progress until the run stops; null never stops early."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """Progress is more than this, in the units of the metric."""


class CheckpointConfig(Section):
    """When to save, beside every validation, the end and a stop by a signal."""

    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; null adds none."""


class LimitsConfig(Section):
    """How long to train."""

    epochs: int = Field(default=10, ge=1)
    """Epochs of the whole run."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the whole run, if that is less; null is no such limit."""


Tracker = Literal["wandb", "mlflow"]


class LoggingConfig(Section):
    """What is recorded while training."""

    every_steps: int = Field(default=10, ge=1)
    """Optimizer steps between lines of metrics."""
    tensorboard: bool = True
    """Whether to write TensorBoard event files, beside `metrics.jsonl`."""
    pictures: int = Field(default=4, ge=0)
    """Validation questions that TensorBoard shows at each validation: heatmap, points, mask, answer; 0 for none."""
    tracker: Tracker | None = None
    """Another place for the same metrics: Weights & Biases or MLflow, each an extra (`pip install 'duoflow[wandb]'`)
    that reads its own environment variables."""
    profile_steps: int = Field(default=0, ge=0)
    """Steps of each start that rank 0 traces, behind the first ones, as `--profile` sets it; 0 traces none."""


class RunConfig(Section):
    """One run, completely."""

    task: str = "gqa"
    """What is learnt from the data, and how it is measured: a row of `duoflow tasks`."""
    run: RunSection = RunSection()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    vlm: VlmConfig = VlmConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    reader: ReaderConfig = ReaderConfig()
    losses: LossConfig = LossConfig()
    answers: AnswersConfig = AnswersConfig()
    pnp: PnpConfig = PnpConfig()
    batch: BatchConfig = BatchConfig(visits=16, micro_visits=8)
    optim: OptimConfig = OptimConfig()
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Of the computation; `auto` is fp16 on a GPU and fp32 without. Weights and moments are always kept in fp32."""
    engine: EngineConfig = EngineConfig()
    validate_every: ValidateEvery = ValidateEvery()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()
    logging: LoggingConfig = LoggingConfig()
    initialize_from: str | None = None
    """Run directory, checkpoint or export whose weights the run starts from; of an export, also what the recipe leaves
    out of the model (docs/export.md)."""


def plan_order(config: RunConfig) -> Order:
    """What determines the order of the run, apart from the data."""
    return Order(
        seed=config.run.seed,
        questions_per_visit=config.data.questions_per_visit,
        visits_per_step=config.batch.visits,
        lanes=config.batch.resolved_lanes,
        shuffle_shards=config.data.shuffle_shards,
    )


def check_world_size(config: RunConfig, world_size: int) -> int:
    """Gradient accumulation: micro-batches that each of `world_size` ranks computes for one step, or may at most where
    their size is still open.

    Raises:
        ConfigError: the lanes or the batch cannot be shared by so many ranks; the message names the sizes that can.
    """
    return accumulation_steps(
        plan_order(config), Share(rank=0, world_size=world_size, micro_visits=config.batch.least_visits)
    )


def share_of(config: RunConfig, rank: int, world_size: int) -> Share:
    """What a rank computes of every step.

    With `batch.micro_tokens`, and with `auto` outside of training, an evaluation takes as many visits at a time as fit
    into so many tokens, or some; it has no backward pass.
    """
    batch, data = config.batch, config.data
    visits = batch.micro_visits if isinstance(batch.micro_visits, int) else EVALUATED_AT_ONCE
    if batch.micro_tokens is not None:
        visits = max(1, batch.micro_tokens // (data.questions_per_visit * data.max_question_tokens))
    return Share(rank=rank, world_size=world_size, micro_visits=visits, micro_tokens=batch.micro_tokens)


def policy_path(config: RunConfig) -> Path:
    """The file with the ZeRO policy.

    Raises:
        ConfigError: it is neither below the working directory nor in the repository.
    """
    candidates = [Path(config.engine.policy), REPOSITORY / config.engine.policy]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(f"ds_configs/{path.name}" for path in (REPOSITORY / "ds_configs").glob("*.json")))
    raise ConfigError(
        f"engine.policy: no file {config.engine.policy} in {Path.cwd()} or {REPOSITORY}; there are: {shipped or 'none'}"
    )

"""A recipe becomes one frozen tree, or an error that names source, key, finding, expectation and the way out."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.config import LossConfig
from model.references import hub_reference, local_directory
from shards.errors import ConfigError
from shards.tasks import TASKS
from trainer.config import RunConfig, dump_config, load_config
from trainer.config import reference as config_reference
from trainer.config.checks import recorded_metrics
from trainer.config.faults import leaf_keys
from trainer.config.schema import REPOSITORY, check_world_size, policy_path
from trainer.config.yaml_text import format_yaml, parse_yaml

RECIPE = "batch: {visits: 64, micro_visits: 8}\nmodel: {freeze: []}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def fault(recipe: Path, *overrides: str) -> str:
    """The error of loading, with the recipe's path cut to its name."""
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value).replace(f"{recipe.parent}/", "")


def with_text(recipe: Path, text: str) -> Path:
    recipe.write_text(RECIPE + text)
    return recipe


class TestReading:
    def test_values_come_from_defaults_then_recipe_then_overrides(self, recipe: Path):
        with_text(recipe, "optim: {lr: 0.5, eps: 0.25}\n")
        config = load_config(recipe, ["optim.lr=3e-5", "model.freeze=[match]", "model.match=some/model"])
        assert (config.optim.lr, config.optim.eps, config.optim.weight_decay) == (3e-5, 0.25, 0.05)
        assert config.model.freeze == ("match",)

    def test_a_section_that_only_overrides_mention_is_made(self, recipe: Path):
        assert load_config(recipe, ["limits.epochs=3", "limits.max_steps=7"]).limits.max_steps == 7

    def test_the_later_of_two_overrides_stands(self, recipe: Path):
        assert load_config(recipe, ["run.seed=3", "run.seed=4"]).run.seed == 4

    def test_the_run_is_named_after_the_recipe_unless_it_has_a_name(self, recipe: Path):
        assert load_config(recipe).run.name == "tiny"
        assert load_config(recipe, ["run.name=other"]).run.name == "other"

    def test_what_is_dumped_loads_to_the_same_configuration_under_any_file_name(self, recipe: Path, tmp_path: Path):
        config = load_config(recipe, ["optim.lr=1e-5", "run.name='1e3'", "optim.max_grad_norm=null"])
        again = tmp_path / "config.yaml"
        again.write_text(dump_config(config))
        assert load_config(again) == config

    def test_a_dump_means_the_same_to_any_yaml_reader(self, recipe: Path):
        config = load_config(recipe, ["run.name='no'", "data.train=2024-01-01", "data.val='1e4'"])
        assert yaml.safe_load(dump_config(config)) == config.model_dump(mode="json")

    def test_the_tree_is_frozen(self, recipe: Path):
        with pytest.raises(ValidationError):
            load_config(recipe).optim.lr = 1.0


class TestFaults:
    """What the user reads. One line per fault."""

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("optim.warmup_step=5", "optim.warmup_step: unknown key; did you mean optim.warmup_steps?"),
            ("lr=3", "lr: unknown key; did you mean optim.lr?"),
            ("seed=3", "seed: unknown key; did you mean run.seed?"),
            ("optim.lr=fast", "optim.lr: expected a number, got fast"),
            ("optim.lr=0", "optim.lr: expected more than 0.0, got 0"),
            ("optim.eps=.inf", "optim.eps: expected a finite number, got .inf"),
            ("optim.lr='1e-4'", "optim.lr: expected a number, got '1e-4'"),
            ("batch.visits=true", "batch.visits: expected an integer, got true"),
            ("batch.visits=64.0", "batch.visits: expected an integer, got 64.0"),
            ("batch.visits=null", "batch.visits: expected an integer, got null"),
            ("engine.processes=two", "engine.processes: expected an integer or null, got two"),
            ("optim.lr.x=3", "optim.lr: expected a number, got {x: 3}"),
            ("optim.betas=[0.9]", "optim.betas: expected 2 numbers for adamw, got 1"),
            ("optim.betas=[0.9, fast]", "optim.betas[1]: expected a number, got fast"),
            ("optim.options=3", "optim.options: expected keys with values under it, got 3"),
            ("optim.name=fusedadamw", "optim.name: fusedadamw needs the package apex; take adamw"),
            ("optim.options.foo=1", "optim.options.foo: adamw has no such option; it has amsgrad, foreach"),
            (
                "optim.schedule_options.decay_t=1",
                "optim.schedule_options.decay_t: has no effect on schedule cosine; remove it, or set timm_cosine",
            ),
            (
                "optim.schedule=plateau",
                "optim.schedule: expected one of cosine, timm_cosine, timm_tanh, timm_poly, timm_step, timm_multistep, "
                "got plateau",
            ),
            ("optim.layer_decay=0", "optim.layer_decay: expected more than 0.0, got 0"),
            (
                "data.augment=rand-m9-x",
                "data.augment: section 'x' is none of timm's; expected rand and sections, each once, such as "
                "rand-m9-mstd0.5: mN magnitude, nN operations, pX probability of each, mstdX and mmaxN of the "
                "magnitude, inc1, t with weights or 3a or 3aw or geometric; or turns, shifts or turns+shifts",
            ),
            ("optim.betas=[0.9, 1]", "optim.betas[1]: expected from 0 to less than 1, got 1.0"),
            ("model.freeze=match", "model.freeze: expected a list in [brackets], got match"),
            (
                "optim=null",
                "optim: expected a section with keys under it, got null; remove the line or fill the section",
            ),
            ("logging.tensorboard=no", "logging.tensorboard: expected true or false, got 'no'"),
            (
                "precision=fp61",
                "precision: expected one of auto, fp16, bf16, fp32 (did you mean fp16?), got fp61",
            ),
            (
                "model.freeze=[macth]",
                "model.freeze[0]: expected one of vision, second_stream, match, answer (did you mean match?), got "
                "macth",
            ),
            ("batch.micro_visits=7", "batch.micro_visits: 7 does not divide batch.visits 64; nearest: 4, 8"),
            ("batch.lanes=24", "batch.lanes: 24 does not divide batch.visits 64; nearest: 16, 32"),
            (
                "early_stopping.metric=val/loss",
                "early_stopping.mode: max would keep the worst checkpoint by val/loss; set it to min",
            ),
            (
                "model.fusion.separate_layers=3",
                "model.fusion.separate_layers: 3 leaves no layer behind the sum; expected less than "
                "model.fusion.layers 3",
            ),
            ("model.fusion.heads=7", "model.fusion.heads: 7 does not divide the width 128; nearest: 4, 8"),
            (
                "model.efficient_sam.width=64",
                "model.efficient_sam.width: 64 has no effect on variant vitt; remove it, or set variant to custom",
            ),
            (
                "losses.negatives=[]",
                "losses.negatives: is empty while losses.itm > 0: matching needs wrong pairs; name answer or question",
            ),
            (
                "early_stopping.patience=3",
                "early_stopping.patience: counts validations, but data.val is null; set data.val, or patience to null",
            ),
        ],
    )
    def test_an_override_is_answered_with_its_text_its_key_and_the_way_out(
        self, recipe: Path, override: str, message: str
    ):
        source = "tiny.yaml" if message.startswith("early_stopping.mode") else override
        assert fault(recipe, override) == f"{source}: {message}"

    def test_a_fault_of_the_recipe_names_the_file(self, recipe: Path):
        assert fault(with_text(recipe, "optim: {lr: fast}\n")) == "tiny.yaml: optim.lr: expected a number, got fast"

    def test_every_fault_is_told_at_once_one_per_line(self, recipe: Path):
        with_text(recipe, "optim: {lr: fast}\nrunn: {}\n")
        lines = fault(recipe, "limits.epochs=0").splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["tiny.yaml", "limits.epochs=0", "tiny.yaml"]

    def test_a_key_without_default_has_to_be_set(self, recipe: Path):
        recipe.write_text("batch: {visits: 64}\nmodel: {freeze: []}\n")
        assert fault(recipe).startswith("tiny.yaml: batch.micro_visits: is not set and has no default; set it (m: ")

    @pytest.mark.parametrize("text", ["optim.lr", "=3", "optim.=3", "optim.lr =3", "a-b=1"])
    def test_what_is_no_override_is_refused(self, recipe: Path, text: str):
        assert fault(recipe, text).startswith(f"{text}: not an override; expected key=value")

    def test_an_override_without_a_value_is_refused(self, recipe: Path):
        assert "write null" in fault(recipe, "optim.lr=")

    def test_an_override_cannot_replace_a_section_unseen(self, recipe: Path):
        assert "set its keys one by one" in fault(recipe, "optim={lr: 1}")

    def test_layer_wise_rates_need_a_tower_that_is_trained(self, recipe: Path):
        frozen = "model.freeze=[vision,second_stream,match,answer]"
        assert load_config(recipe, ["optim.layer_decay=0.7"]).optim.layer_decay == 0.7
        found = fault(recipe, "optim.layer_decay=0.7", frozen)
        assert "optim.layer_decay: 0.7 has no effect while all towers are frozen; take one out of model.freeze" in found

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["optim.name=lion", "optim.eps=1e-8"], "optim.eps: lion takes none; remove it"),
            (["optim.name=sgd", "optim.betas=[0.9, 0.9]"], "optim.betas: sgd takes none; remove it"),
            (["optim.name=sgd", "optim.options.momentun=0.5"], "sgd has no such option; did you mean momentum?"),
            (
                ["task=nlvr2", "data.augment=rand-m9"],
                "data.augment: rand-m9: task nlvr2 tells images apart by their side",
            ),
        ],
    )
    def test_what_another_choice_does_not_take_is_named(self, recipe: Path, overrides: list[str], message: str):
        assert message in fault(recipe, *overrides)

    def test_what_an_optimizer_takes_is_handed_on(self, recipe: Path):
        overrides = ["optim.name=sgd", "optim.options.momentum=0.5", "optim.options.nesterov=false"]
        assert load_config(recipe, overrides).optim.choice.options == {"momentum": 0.5, "nesterov": False}

    def test_an_override_below_a_plain_value_of_the_recipe_is_refused(self, recipe: Path):
        assert "batch.visits: is a value in the recipe" in fault(recipe, "batch.visits.x=1")

    @pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "-x", "a b"])
    def test_a_run_name_cannot_leave_the_directory_of_runs(self, recipe: Path, name: str):
        assert "run.name: expected letters" in fault(recipe, f"run.name={name}")

    @pytest.mark.parametrize(
        ("text", "finding"),
        [
            (
                "run: {seed: 1}\nrun: {seed: 2}\n",
                "tiny.yaml:4:1: cannot be read as YAML: key 'run' is already in line 3",
            ),
            ("run: !!python/object/apply:os.getpid []\n", "tags (!name) are not read"),
            ("run: &a {seed: 1}\nx: *a\n", "aliases (*name)"),
            ("run: [1\n", "tiny.yaml:4:1: cannot be read as YAML"),
        ],
    )
    def test_yaml_beyond_plain_values_is_refused_with_its_line(self, recipe: Path, text: str, finding: str):
        assert finding in fault(with_text(recipe, text))

    @pytest.mark.parametrize(("text", "finding"), [("", "got nothing"), ("[1]", "got [1]"), ("7", "got 7")])
    def test_a_recipe_is_a_tree_of_sections(self, recipe: Path, text: str, finding: str):
        recipe.write_text(text)
        assert finding in fault(recipe)

    def test_one_line_is_a_recipe(self, recipe: Path):
        recipe.write_text("# nothing but data\n")
        assert "a line is enough: data: {train: DIR}" in fault(recipe)
        by_override = load_config(recipe, ["data.train=shards"])
        recipe.write_text("data: {train: shards}\n")
        config = load_config(recipe)
        assert config == by_override
        assert (config.model.second_stream, config.model.freeze) == ("none", ("second_stream",))
        assert config.batch.visits % config.batch.micro_visits == 0

    def test_a_recipe_that_leaves_freeze_out_trains_what_starts_from_random_weights(self, recipe: Path):
        recipe.write_text("model: {vision: Salesforce/blip, second_stream: efficient_sam}\n")
        assert load_config(recipe).model.freeze == ("vision",)
        weights = "model.efficient_sam.checkpoint=sam.pt"
        assert load_config(recipe, [weights]).model.freeze == ("vision", "second_stream")
        assert "would stay so: an untrained frozen tower" in fault(recipe, "model.freeze=[match]")

    def test_what_a_recipe_says_of_how_it_sees_stands(self, recipe: Path):
        recipe.write_text("model: {freeze: []}\n")
        assert load_config(recipe).model.second_stream == "efficient_sam"

    def test_a_missing_or_unreadable_recipe_is_named(self, recipe: Path, tmp_path: Path):
        assert fault(recipe.with_name("none.yaml")).startswith("none.yaml: no such file")
        assert "cannot be read: Is a directory" in fault(tmp_path)
        recipe.write_bytes(b"run: \xff")
        assert "not UTF-8 text at byte 5" in fault(recipe)


class TestCrossChecks:
    def test_validation_is_every_so_many_epochs_or_steps_but_not_both(self, recipe: Path):
        assert load_config(recipe).validate_every.epochs == 1
        every = load_config(recipe, ["validate_every.steps=50"]).validate_every
        assert (every.epochs, every.steps) == (None, 50)
        assert "epochs=2 and steps=50 are both set" in fault(
            recipe, "validate_every.epochs=2", "validate_every.steps=50"
        )

    def test_an_unknown_task_is_answered_with_those_that_there_are(self, recipe: Path):
        assert load_config(recipe, ["task=gqa"]).task == load_config(recipe).task == "gqa"
        assert fault(recipe, "task=gqaa").endswith(f"expected one of {', '.join(TASKS)} (did you mean gqa?), got gqaa")

    def test_some_loss_must_have_a_weight(self, recipe: Path):
        assert "both 0" in fault(recipe, "losses.itm=0", "losses.answer=0.0")

    def test_an_unknown_metric_is_answered_with_those_that_are_recorded(self, recipe: Path):
        message = fault(recipe, "early_stopping.metric=val/acuracy")
        assert "did you mean val/accuracy? recorded: train/loss," in message
        assert "val/structural/verify" in message

    def test_a_metric_of_a_loss_that_is_off_is_refused_where_there_is_validation(self, recipe: Path):
        assert load_config(recipe, ["losses.answer=0"]).early_stopping.metric == "val/accuracy"
        message = fault(recipe, "losses.answer=0", "data.val=somewhere")
        assert "val/accuracy is not recorded when losses.answer is 0" in message
        assert message.endswith("val/itm_accuracy")

    def test_every_recorded_metric_can_decide_which_checkpoint_is_best(self, recipe: Path):
        for metric in recorded_metrics("gqa", LossConfig()):
            mode = "min" if metric.endswith("loss") else "max"
            load_config(recipe, [f"early_stopping.metric={metric}", f"early_stopping.mode={mode}"])

    def test_an_untrained_frozen_tower_is_refused_since_initialize_from_loads_trained_parts_alone(self, recipe: Path):
        frozen = "model.freeze=[vision, second_stream, match, answer]"
        lines = fault(recipe, frozen, "initialize_from=runs/backbones").splitlines()
        assert [line.split(": ")[-2].split()[0] for line in lines] == ["vision", "second_stream", "match", "answer"]
        assert all("an untrained frozen tower" in line for line in lines)

    def test_efficient_sam_as_first_stream_is_frozen_and_not_the_second_as_well(self, recipe: Path):
        first = ["model.vision=efficient_sam", "model.freeze=[vision]"]
        assert "model.second_stream: is EfficientSAM, as model.vision is" in fault(recipe, *first)
        alone = ["model.vision=efficient_sam", "model.second_stream=none"]
        assert "model.freeze: lacks vision" in fault(recipe, *alone)
        assert "vision starts from random weights" in fault(recipe, *first, "model.second_stream=none")
        weights = "model.efficient_sam.checkpoint=weights.pt"
        assert load_config(recipe, [*first, "model.second_stream=none", weights]).model.vision == "efficient_sam"

    def test_concatenation_needs_two_streams(self, recipe: Path):
        overrides = ["model.fusion.name=concatenation", "model.second_stream=none"]
        assert "model.fusion.name: concatenation needs two streams" in fault(recipe, *overrides)

    def test_frozen_towers_that_the_run_does_not_use_need_no_weights(self, recipe: Path):
        unused = ["losses.itm=0", "model.second_stream=none", "model.freeze=[second_stream, match]"]
        assert load_config(recipe, unused).model.freeze == ("second_stream", "match")

    def test_towers_that_share_a_text_encoder_are_frozen_together(self, recipe: Path):
        shared = ["model.match=some/blip", "model.answer=some/blip"]
        assert "freeze both or neither" in fault(recipe, *shared, "model.freeze=[match]")
        assert load_config(recipe, [*shared, "model.freeze=[match, answer]"]).model.match == "some/blip"

    def test_a_custom_efficient_sam_needs_all_its_sizes_and_they_fit(self, recipe: Path):
        tower = "model.efficient_sam"
        sizes = {"image_size": 64, "patch_size": 16, "width": 48, "depth": 2, "heads": 3, "neck_width": 32}
        overrides = [f"{tower}.variant=custom", *(f"{tower}.{name}={size}" for name, size in sizes.items())]
        assert load_config(recipe, overrides).model.efficient_sam.depth == 2
        assert f"{tower}.neck_width: is not set; variant custom needs it" in fault(recipe, *overrides[:-1])
        assert f"{tower}.heads: 5 does not divide the width 48" in fault(recipe, *overrides, f"{tower}.heads=5")
        assert f"{tower}.patch_size: 15 does not" in fault(recipe, *overrides, f"{tower}.patch_size=15")


class TestWorldSize:
    def test_accumulation_is_what_is_left_of_the_batch(self, recipe: Path):
        config = load_config(recipe)
        assert [check_world_size(config, ranks) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]

    def test_a_world_that_does_not_divide_the_lanes_is_told_which_do(self, recipe: Path):
        with pytest.raises(ConfigError, match=r"batch\.lanes: 64 lanes .* 3 ranks.* 1, 2, 4, 8, 16, 32, 64"):
            check_world_size(load_config(recipe), 3)

    def test_a_micro_batch_that_does_not_fit_a_rank_is_told_which_do(self, recipe: Path):
        with pytest.raises(ConfigError, match=r"batch\.micro_visits: 8 does not divide the 4 visits.* 1, 2, 4"):
            check_world_size(load_config(recipe), 16)


class TestPolicyFile:
    def test_it_is_found_from_the_working_directory_first(self, recipe: Path, tmp_path: Path, monkeypatch):
        (tmp_path / "ds_configs").mkdir()
        (tmp_path / "ds_configs" / "zero1.json").write_text("{}")
        monkeypatch.chdir(tmp_path)
        assert policy_path(load_config(recipe)).resolve() == tmp_path / "ds_configs" / "zero1.json"

    def test_a_missing_one_is_named(self, recipe: Path):
        with pytest.raises(ConfigError, match=r"engine\.policy: no file zero9\.json in"):
            policy_path(load_config(recipe, ["engine.policy=zero9.json"]))


@pytest.mark.parametrize(
    ("reference", "directory"),
    [("scratch", None), ("Salesforce/blip-vqa-base", None), ("./here", Path("here")), ("/a/b", Path("/a/b"))],
)
def test_a_reference_is_a_directory_if_it_looks_like_one(reference: str, directory: Path | None):
    assert local_directory(reference) == directory


def test_a_hub_reference_may_be_pinned():
    assert hub_reference("org/name@abc") == ("org/name", "abc")
    assert hub_reference("org/name") == ("org/name", None)


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_the_repository_loads_and_names_a_policy_that_is_there(recipe: Path):
    assert policy_path(load_config(recipe)).is_file()


_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
_trees = st.dictionaries(
    st.text(max_size=6), st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=4), max_size=4
)


@given(tree=_trees)
def test_yaml_that_is_written_is_read_back(tree: dict):
    assert parse_yaml(format_yaml(tree), "text") == tree


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_every_way_python_writes_a_number_is_read_as_one(number: float):
    for text in (repr(number), f"{number:e}", json.dumps(number)):
        assert type(parse_yaml(text, "text")) is float
    assert parse_yaml(repr(number), "text") == number


class TestReference:
    def test_the_committed_reference_is_current(self):
        assert config_reference.REFERENCE.read_text(encoding="utf-8") == config_reference.reference()
        assert config_reference.SCHEMA.read_text(encoding="utf-8") == config_reference.schema()

    def test_every_key_has_a_meaning(self):
        rows = [line for line in config_reference.reference().splitlines() if line.startswith("| `")]
        assert sorted(row.split("`")[1] for row in rows) == sorted(leaf_keys(RunConfig))
        assert [row for row in rows if row.endswith("|  |")] == []

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from rectools.utils.config import BaseConfig

from rectools_neural import config
from rectools_neural.errors import did_you_mean

# The typed option, a name of it, and the class that the name stands for.
OPTIONS = [
    (config.Loss, "squared", config.SquaredLoss),
    (config.Loss, "softmax", config.SoftmaxLoss),
    (config.Loss, "sampled_softmax", config.SampledSoftmaxLoss),
    (config.Loss, "bpr", config.BPRLoss),
    (config.Loss, "bce", config.BCELoss),
    (config.Loss, "triplet", config.TripletLoss),
    (config.Negatives, "in_batch", config.NegativesConfig),
    (config.Schedule, "plateau", config.ScheduleConfig),
    (config.Optimizer, "adagrad", config.OptimizerConfig),
    (config.Validation, "time", config.ValidationConfig),
    (config.Tower, "residual", config.TowerConfig),
    (config.HistoryEncoder, "transformer", config.HistoryEncoderConfig),
    (config.Contrastive, "simgcl", config.ContrastiveConfig),
]
IDS = [f"{cls.__name__}-{name}" for _, name, cls in OPTIONS]


def parse(option: Any, value: Any) -> Any:
    return TypeAdapter(option).validate_python(value)


@pytest.mark.parametrize(("option", "name", "cls"), OPTIONS, ids=IDS)
class TestForms:
    def test_plain_name(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        assert parse(option, name) == cls(name=name)
        assert type(parse(option, name)) is cls

    def test_dict(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        assert parse(option, {"name": name}) == cls(name=name)

    def test_object_itself(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        value = cls(name=name)
        assert parse(option, value) == value

    def test_json_and_back(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        adapter = TypeAdapter(option)
        value = adapter.validate_python(name)
        assert adapter.validate_json(adapter.dump_json(value)) == value
        assert adapter.validate_python(adapter.dump_python(value, mode="json")) == value

    def test_unknown_name_gives_the_nearest(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        misspelt = name + "x"
        for value in (misspelt, {"name": misspelt}):
            with pytest.raises(ValidationError, match=f"unknown name `{misspelt}`; did you mean `{name}`"):
                parse(option, value)

    def test_far_name_lists_the_valid_ones(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        with pytest.raises(ValidationError, match=rf"unknown name `qqqq`; valid names: .*\b{name}\b"):
            parse(option, "qqqq")

    def test_unknown_field(self, option: Any, name: str, cls: type[BaseConfig]) -> None:
        with pytest.raises(ValidationError, match="lenght"):
            parse(option, {"name": name, "lenght": 3})

    @pytest.mark.parametrize("value", [3, 2.5, [], ["bpr"], {"name": 3}, {"name": None}, {"name": ["bpr"]}, object()])
    def test_wrong_type(self, option: Any, name: str, cls: type[BaseConfig], value: Any) -> None:
        with pytest.raises(ValidationError):
            parse(option, value)


class TestFields:
    def test_options_beside_the_name(self) -> None:
        loss = parse(config.Loss, {"name": "triplet", "margin": 0.7, "mining": "hard"})
        assert loss == config.TripletLoss(margin=0.7, mining="hard")
        tower = parse(config.Tower, {"name": "mlp", "hidden": [32, 16]})
        assert tower.hidden == (32, 16)

    def test_schedule_inside_the_optimizer(self) -> None:
        for schedule in ("step", {"name": "step"}, config.ScheduleConfig(name="step")):
            assert parse(config.Optimizer, {"schedule": schedule}).schedule == config.ScheduleConfig(name="step")
        with pytest.raises(ValidationError, match="did you mean `plateau`"):
            parse(config.Optimizer, {"schedule": "platau"})

    def test_options_of_another_loss_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="margin"):
            parse(config.Loss, {"name": "bpr", "margin": 0.3})

    def test_loss_without_a_name(self) -> None:
        with pytest.raises(ValidationError, match="name"):
            parse(config.Loss, {"margin": 0.3})

    @pytest.mark.parametrize(
        ("option", "value", "field"),
        [
            (config.Loss, {"name": "squared", "unobserved_weight": 0}, "unobserved_weight"),
            (config.Loss, {"name": "squared", "unobserved_weight": "much"}, "unobserved_weight"),
            (config.Loss, {"name": "triplet", "margin": -1}, "margin"),
            (config.Loss, {"name": "triplet", "mining": "soft"}, "mining"),
            (config.Negatives, {"name": "uniform", "n": 0}, "n"),
            (config.Negatives, {"name": "uniform", "n": 1.5}, "n"),
            (config.Negatives, {"name": "popularity", "power": -0.1}, "power"),
            (config.Schedule, {"name": "cosine", "warmup": 1.0}, "warmup"),
            (config.Schedule, {"name": "step", "factor": 1.0}, "factor"),
            (config.Optimizer, {"l2": -1}, "l2"),
            (config.Optimizer, {"gradient_clipping": 0}, "gradient_clipping"),
            (config.Validation, {"size": 0}, "size"),
            (config.Validation, {"metric": "auc"}, "metric"),
            (config.Validation, {"k": 0}, "k"),
            (config.Tower, {"hidden": [0]}, "hidden"),
            (config.Tower, {"hidden": 128}, "hidden"),
            (config.Tower, {"dropout": 1.0}, "dropout"),
            (config.Tower, {"activation": "swish"}, "activation"),
            (config.HistoryEncoder, {"power": 1.5}, "power"),
            (config.HistoryEncoder, {"max_length": 0}, "max_length"),
            (config.Contrastive, {"noise": 1.0}, "noise"),
            (config.Contrastive, {"noise": -0.1}, "noise"),
            (config.Contrastive, {"temperature": 0}, "temperature"),
            (config.Contrastive, {"weight": 0}, "weight"),
            (config.Contrastive, {"layer": 0}, "layer"),
        ],
    )
    def test_values_out_of_range_name_the_field(self, option: Any, value: dict[str, Any], field: str) -> None:
        with pytest.raises(ValidationError) as error:
            parse(option, value)
        assert field in [part for problem in error.value.errors() for part in problem["loc"]]

    def test_defaults_are_not_shared(self) -> None:
        assert config.OptimizerConfig().schedule is not config.OptimizerConfig().schedule


class TestDidYouMean:
    def test_nearest(self) -> None:
        assert did_you_mean("tripplet", ["bpr", "triplet", "squared"]) == "; did you mean `triplet`?"

    def test_nothing_near(self) -> None:
        assert did_you_mean("xyz", ["b", "a"]) == "; valid names: a, b"

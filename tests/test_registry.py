from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import rectools.models
from rectools.models.base import ModelBase

import rectools_neural
from rectools_neural import model_from_config, model_from_params
from rectools_neural.models.dssm import DSSMModel
from rectools_neural.registry import MODELS


@pytest.mark.parametrize("name", MODELS)
class TestEachModel:
    def test_is_a_model(self, name: str) -> None:
        cls = getattr(rectools_neural, name)
        assert issubclass(cls, ModelBase)
        assert cls.__name__ == name
        assert cls.__module__ == MODELS[name]
        assert cls.__doc__

    def test_is_public(self, name: str) -> None:
        assert name in rectools_neural.__all__
        assert name in dir(rectools_neural)

    @pytest.mark.parametrize("prefix", ["", "rectools_neural."])
    def test_from_its_name(self, name: str, prefix: str) -> None:
        assert type(model_from_config({"cls": prefix + name})) is getattr(rectools_neural, name)

    def test_saved_config_has_the_public_name(self, name: str) -> None:
        saved = getattr(rectools_neural, name)().get_config(simple_types=True)
        assert saved["cls"] == f"rectools_neural.{name}"
        for load in (model_from_config, rectools.models.model_from_config):
            assert load(saved).get_config(simple_types=True) == saved


class TestPackage:
    def test_all_names_exist(self) -> None:
        assert rectools_neural.__all__ == sorted(rectools_neural.__all__)
        for name in rectools_neural.__all__:
            assert getattr(rectools_neural, name).__name__ == name

    def test_unknown_name(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'DSMModel'"):
            _ = rectools_neural.DSMModel

    def test_import_is_lazy(self) -> None:
        code = (
            "import sys, rectools_neural; assert 'DSSMModel' in dir(rectools_neural); "
            "heavy = ('torch', 'rectools', 'pandas', 'pydantic', 'pytorch_lightning'); "
            "print([name for name in sys.modules if name in heavy or name.startswith('rectools_neural.')])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")


class TestFromConfig:
    def test_short_name_is_ours_first(self) -> None:
        # RecTools has a class of this name too.
        assert rectools.models.DSSMModel is not DSSMModel
        model = model_from_config({"cls": "DSSMModel", "n_factors": 7, "loss": "triplet"})
        assert type(model) is DSSMModel
        assert model.n_factors == 7
        assert model.loss.name == "triplet"

    @pytest.mark.parametrize("name", ["EASEModel", "PopularModel", "ImplicitALSWrapperModel"])
    def test_names_of_rectools(self, name: str) -> None:
        config: dict[str, Any] = {"cls": name}
        if name == "ImplicitALSWrapperModel":
            config["model"] = {"cls": "AlternatingLeastSquares", "factors": 3}
        model = model_from_config(config)
        assert type(model) is getattr(rectools.models, name)

    def test_dotted_path(self) -> None:
        for path in ("rectools_neural.DSSMModel", "rectools_neural.models.dssm.DSSMModel"):
            assert type(model_from_config({"cls": path})) is DSSMModel
        model = model_from_config({"cls": "rectools.models.EASEModel", "regularization": 3.0})
        assert type(model) is rectools.models.EASEModel
        assert model.regularization == 3.0

    def test_class_itself(self) -> None:
        assert type(model_from_config({"cls": DSSMModel})) is DSSMModel
        assert type(model_from_config({"cls": rectools.models.EASEModel})) is rectools.models.EASEModel

    def test_config_stays_as_it_was(self) -> None:
        config = {"cls": "DSSMModel", "loss": {"name": "triplet", "margin": 0.3}}
        model_from_config(config)
        assert config == {"cls": "DSSMModel", "loss": {"name": "triplet", "margin": 0.3}}

    @pytest.mark.parametrize("config", [{}, {"n_factors": 3}, {"cls": None}])
    def test_missing_class(self, config: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="no `cls`"):
            model_from_config(config)

    @pytest.mark.parametrize(
        ("name", "nearest"), [("DSMModel", "DSSMModel"), ("EASE", "EASEModel"), ("PopularModl", "PopularModel")]
    )
    def test_unknown_name_gives_the_nearest(self, name: str, nearest: str) -> None:
        with pytest.raises(ValueError, match=f"Unknown model `{name}`; did you mean `{nearest}`"):
            model_from_config({"cls": name})

    def test_far_name_lists_ours_and_those_of_rectools(self) -> None:
        with pytest.raises(ValueError, match=r"valid names: .*DSSMModel.*EASEModel"):
            model_from_config({"cls": "q"})

    @pytest.mark.parametrize("name", ["base", "model_from_config"])
    def test_what_is_no_model(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"Unknown model `{name}`"):
            model_from_config({"cls": name})

    def test_unknown_parameter_is_named(self) -> None:
        with pytest.raises(ValueError, match="factorz"):
            model_from_config({"cls": "DSSMModel", "factorz": 3})


class TestFromParams:
    def test_nested_keys(self) -> None:
        model = model_from_params({"cls": "DSSMModel", "loss.name": "triplet", "loss.margin": 0.3})
        assert type(model) is DSSMModel
        assert model.loss.name == "triplet"
        assert model.loss.margin == 0.3

    def test_other_separator(self) -> None:
        model = model_from_params({"cls": "DSSMModel", "loss__name": "bpr"}, sep="__")
        assert model.loss.name == "bpr"

    def test_round_trip(self) -> None:
        model = DSSMModel(loss="triplet", n_factors=5)
        again = model_from_params(model.get_params(simple_types=True))
        assert again.get_config() == model.get_config()

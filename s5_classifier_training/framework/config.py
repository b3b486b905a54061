"""An experiment's two configuration files, checked: `config.yaml` and `dataset.config`."""

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline_common.errors import UserError
from s5_classifier_training.framework.estimators import ESTIMATORS
from s5_classifier_training.framework.experiment_folder import CONFIG, DATASET_CONFIG

Value = str | int | float | bool | None | list[int]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EstimatorConfig(_Strict):
    """One candidate.

    Attributes:
        name: a key of the registry in estimators.py.
        params: keyword arguments of the scikit-learn class, over the registry's defaults.
    """

    name: str
    params: dict[str, Value] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ESTIMATORS:
            raise ValueError(f"{name!r} is none of {', '.join(ESTIMATORS)}")
        return name

    @property
    def title(self) -> str:
        """Name and parameters in a few words, as tables show it."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.params.items())])


class ExperimentConfig(_Strict):
    """Content of ``config.yaml``.

    Attributes:
        task: ``auto`` takes classification for labels and regression for activations.
        seed: of the folds, the estimators, the bootstrap and the shuffled labels.
        n_folds: of the cross-validation inside the train split.
        estimators: the candidates; the best by cv_mean is tested.
    """

    task: Literal["auto", "classification", "regression"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**32)
    n_folds: int = Field(default=5, ge=2)
    estimators: list[EstimatorConfig] = Field(min_length=1)

    @field_validator("estimators")
    @classmethod
    def _distinct(cls, estimators: list[EstimatorConfig]) -> list[EstimatorConfig]:
        titles = [estimator.title for estimator in estimators]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"{title!r} stands there twice")
        return estimators


class DatasetConfig(_Strict):
    """Content of ``dataset.config``.

    Attributes:
        dataset: path of the NPZ, relative to the folder of this file.
        made_by: the stage 4 command that makes it, shown where the file is missing.
    """

    dataset: str = Field(min_length=1)
    made_by: str = "generate_datasets.py --strategy STRATEGY --input STORE --output NPZ"


Config = TypeVar("Config", bound=_Strict)


def load_experiment_config(working: Path) -> ExperimentConfig:
    """Read ``config.yaml``.

    Raises:
        UserError: missing, not YAML, or a key that is unknown, missing or of a wrong kind.
    """
    return _load(working / CONFIG, ExperimentConfig)


def load_dataset_path(working: Path) -> Path:
    """Path of the dataset that ``dataset.config`` names.

    Raises:
        UserError: as for `load_experiment_config`, or the dataset does not exist; the message then says
            how to make it.
    """
    config = _load(working / DATASET_CONFIG, DatasetConfig)
    path = (working / config.dataset).resolve()
    if not path.is_file():
        raise UserError(
            f"{working / DATASET_CONFIG}: the dataset {path} does not exist; make it in "
            f"s4_classifier_data_prep with: {config.made_by}"
        )
    return path


def _load(path: Path, model: type[Config]) -> Config:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an experiment needs it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values such as {next(iter(model.model_fields))}: ...")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error, model)}") from None


def _first_problem(error: ValidationError, model: type[_Strict]) -> str:
    problem: Any = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        # A key inside estimators[i] is unknown there; a key at the top is unknown in this model.
        owner = model if len(problem["loc"]) == 1 else EstimatorConfig
        return f"{key}: unknown key; the keys here are {', '.join(owner.model_fields)}"
    if problem["type"] == "missing":
        return f"{key}: this key is missing"
    if problem["type"] == "value_error":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
    return f"{key}: {problem['msg']}, found {problem['input']!r}"

"""An experiment's two configuration files, checked: `config.yaml` and `dataset.config`."""

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline_common.errors import UserError
from s5_classifier_training.framework.estimators import ESTIMATORS, STEP_OF
from s5_classifier_training.framework.experiment_folder import CONFIG, DATASET_CONFIG

_NUMBER_IN_TEXT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _no_number_in_text(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER_IN_TEXT.fullmatch(value):
        # YAML 1.1, which PyYAML reads, takes 1e-3 for text: it wants the point and the sign.
        raise ValueError(
            f"{value} is text to YAML; write it as {float(value)!r} or with a point and a sign, 1.0e-3"
        )
    return value


Value = Annotated[str | int | float | bool | list[int] | None, AfterValidator(_no_number_in_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EstimatorConfig(_Strict):
    """One candidate.

    Attributes:
        name: a key of the registry in estimators.py.
        params: keyword arguments of the scikit-learn class, over the registry's defaults.
        top_k: how many inputs are kept, chosen anew on each training part; None keeps all.
        search: parameter, or ``top_k``, to the values among which an inner cross-validation chooses on each
            training part.
    """

    name: str
    params: dict[str, Value] = Field(default_factory=dict)
    top_k: int | None = Field(default=None, ge=1)
    search: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ESTIMATORS:
            raise ValueError(f"{name!r} is none of {', '.join(ESTIMATORS)}")
        return name

    @field_validator("search")
    @classmethod
    def _counts(cls, search: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in search.get("top_k", [])):
            raise ValueError(f"top_k takes whole numbers from 1, found {search['top_k']}")
        return search

    @model_validator(mode="after")
    def _searched_or_set(self) -> "EstimatorConfig":
        for key in self.search:
            if key in self.params or (key in STEP_OF and self.top_k is not None):
                raise ValueError(f"{key} is both set and searched; keep one of the two")
        return self

    @property
    def largest_top_k(self) -> int:
        """The most inputs that it asks for; 0 where it keeps all."""
        searched = [k for k in self.search.get("top_k", []) if isinstance(k, int)]
        return max([self.top_k or 0, *searched])

    @property
    def title(self) -> str:
        """Name, parameters and search in a few words, as tables show it."""
        words = [self.name, *(f"{key}={value}" for key, value in self.params.items())]
        if self.top_k is not None:
            words.append(f"top_k={self.top_k}")
        return " ".join([*words, *(f"{key} of {values}" for key, values in self.search.items())])


class ExperimentConfig(_Strict):
    """Content of ``config.yaml``.

    Attributes:
        task: ``auto`` takes classification for labels and regression for activations; ``ordinal`` is a
            classification whose candidates are judged by the order of the labels too.
        seed: of the folds, the estimators, the bootstrap and the shuffled labels.
        n_folds: of the cross-validation inside the train split.
        estimators: the candidates; the best by cv_mean is tested.
    """

    task: Literal["auto", "classification", "regression", "ordinal"] = "auto"
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
    try:
        path = (working / config.dataset).resolve()
        found = path.is_file()
    except (OSError, ValueError) as error:  # too long a name, or a NUL in it
        raise UserError(f"{working / DATASET_CONFIG}: dataset is no path: {error}"[:300]) from None
    if not found:
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
    except Exception as error:  # a tag on a text that does not suit it makes PyYAML fail in any way
        raise UserError(f"{path}: not valid YAML: {error or type(error).__name__}") from None
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
        return f"{key}: {_home_of(str(problem['loc'][-1]), owner)}"
    if problem["type"] == "missing":
        return f"{key}: this key is missing"
    if problem["type"] == "value_error":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
    # Shortened: references in YAML make a value of a few lines endless.
    return f"{key}: {problem['msg']}, found {reprlib.repr(problem['input'])}"


def _home_of(key: str, owner: type[_Strict]) -> str:
    """What to say of a key that is not one of the owner's: where it belongs, where that is known."""
    places: dict[type[_Strict], str] = {
        ExperimentConfig: f"at the top of {CONFIG}",
        EstimatorConfig: f"in an entry of estimators in {CONFIG}",
        DatasetConfig: f"in {DATASET_CONFIG}",
    }
    for home, place in places.items():
        if key in home.model_fields:
            return f"misplaced key; it belongs {place}"
    hint = "; an estimator's own parameters stand under its params" if owner is not DatasetConfig else ""
    return f"unknown key; the keys here are {', '.join(owner.model_fields)}{hint}"

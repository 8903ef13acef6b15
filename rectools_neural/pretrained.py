"""
Fitted models, with their users if wanted, as folders of plain files: JSON, safetensors and parquet.

Nothing in the files is code or names code. They are read with suspicion: sizes and checksums first, then the structure,
the shapes, types and ranges of all arrays. The types of what is built follow from the class of the model alone, which
is looked up in the registry.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from rectools.exceptions import NotFittedError
from scipy import sparse

from .data.batches import FeatureSchema
from .data.context import ContextEncoder
from .data.features import EncodedFeatures, FeatureEncoder
from .data.histories import Histories
from .data.reader import DatasetReader, Reading, Users, match
from .files import find_folder, old_folder, replacing_folder
from .registry import MODELS

if TYPE_CHECKING:
    from rectools.dataset import Dataset

    from .models.pack import PackModel

FORMAT = 1
CONFIG, STATE, WEIGHTS = "config.json", "state.json", "weights.safetensors"
USER_IDS, ITEM_IDS = "user_ids.parquet", "item_ids.parquet"
_CONTENTS = (STATE, WEIGHTS, USER_IDS, ITEM_IDS)
# Both or neither: the users of a dataset, who may be others than those of the fit.
KNOWN_USER_IDS, USERS = "known_user_ids.parquet", "users.safetensors"
_OF_USERS = (KNOWN_USER_IDS, USERS)
_ALL = (CONFIG, *_CONTENTS, *_OF_USERS)
_PACKAGES = ("rectools-neural", "rectools", "torch", "numpy", "pandas", "scipy", "safetensors", "pyarrow")
# The Trainer is of the program that trains, not of the model, and its maker is code.
_NOT_SAVED = ("get_trainer_func", "get_trainer_func_kwargs")
_MAX_CONFIG = 1 << 16  # bytes; nothing tells beforehand how large it must be
_MAX_LAYERS = 1000  # layers are built one by one, and no weights need stand behind the number
_IDS_AT_ONCE = 1 << 16
_ATTEMPTS = 20  # to read a folder that is replaced meanwhile
_AGAIN = "Get the folder again from where it came from, or save the model again with `save_pretrained`"

# ---------------------------------------------------------------------- structure of the JSON files


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Tagged(_Strict):
    """A value that JSON can't tell from others: numbers of NumPy, and numbers that are not finite, as text."""

    type: str
    value: bool | int | float | str

    def plain(self) -> object:
        return _TYPES[self.type](self.value)


_NUMPY_TYPES = ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_TYPES: dict[str, Any] = {
    "float": float,
    **{name: getattr(np, name) for name in (*_NUMPY_TYPES, "float16", "float32", "float64", "str_")},
}
_Scalar = str | bool | int | float | _Tagged


class _Features(_Strict):
    """A fitted encoder of features, but for its numbers."""

    kind: Literal["none", "dense", "sparse"]
    fields: tuple[_Scalar, ...]
    values: tuple[tuple[_Scalar, _Scalar], ...]
    numeric: tuple[_Scalar, ...]


class _State(_Strict):
    """What a model knows of the data besides numbers and ids."""

    user_id_type: str
    item_id_type: str
    reading: Reading
    user_features: _Features
    item_features: _Features
    context: _Features | None
    context_gaps: tuple[str, ...]
    history: dict[str, tuple[bool | int | float | None, ...]] | None
    known_user_id_type: str | None = None


class _File(_Strict):
    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Index(_Strict):
    """The file `config.json`."""

    format: int
    packages: dict[str, str]
    config: dict[str, Any]
    fitted_config: dict[str, Any]
    files: dict[str, _File]


class _Version(BaseModel):
    """The part of `config.json` that all versions of the format share."""

    model_config = ConfigDict(strict=True)

    format: int
    packages: dict[str, Any]


# ---------------------------------------------------------------------- saving


def save_pretrained(model: PackModel[Any], folder: str | os.PathLike[str], dataset: Dataset | None = None) -> None:
    """Write a fitted model; see `PackModel.save_pretrained`."""
    if not model.is_fitted:
        raise NotFittedError(type(model).__name__)
    name = type(model).__name__
    if MODELS.get(name) != type(model).__module__:
        raise ValueError(f"{name} is none of the models of rectools_neural: save it with `save`")
    _check_replaceable(folder)
    contents = _contents(model, dataset)
    index = _Index(
        format=FORMAT,
        packages={package: version(package) for package in _PACKAGES},
        config={"cls": f"rectools_neural.{name}", **_options(model.get_config(mode="pydantic"))},
        fitted_config=_options(model.fitted_config),
        files={file: _File(size=len(data), sha256=hashlib.sha256(data).hexdigest()) for file, data in contents.items()},
    )
    contents[CONFIG] = _json(index, indent=2)
    if len(contents[CONFIG]) > _MAX_CONFIG:
        raise ValueError(f"The options of the model take more than {_MAX_CONFIG} bytes: save it with `save`")
    if any(getattr(model, option, None) is not None for option in _NOT_SAVED):
        warnings.warn(
            f"The options {', '.join(f'`{option}`' for option in _NOT_SAVED)} are not saved: set them again as "
            "attributes of the loaded model before you train it further",
            stacklevel=3,
        )
    with replacing_folder(folder, _ALL) as target:
        for file, data in contents.items():
            (target / file).write_bytes(data)


def _options(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"cls", *_NOT_SAVED})


def _json(model: BaseModel, indent: int | None = None) -> bytes:
    return json.dumps(model.model_dump(mode="json"), ensure_ascii=False, indent=indent).encode()


def _contents(model: PackModel[Any], dataset: Dataset | None) -> dict[str, bytes]:
    reader: DatasetReader = model._fitted.reader
    of_users = {} if dataset is None else _contents_of_users(reader, dataset)
    arrays = {**_arrays_of_reader(reader), **_flat(model._arrays())}
    for name, array in arrays.items():
        if not _is_sound(name, array):
            raise ValueError(f"`{name}` of the model has values that are not finite: its training failed, fit it again")
    context = reader.context_encoder
    history: pd.DataFrame | None = getattr(model, "history", None)
    state = _State(
        user_id_type=_id_type(reader.user_ids),
        item_id_type=_id_type(reader.item_ids),
        reading=reader.reading,
        user_features=_from_encoder(reader.user_encoder),
        item_features=_from_encoder(reader.item_encoder),
        context=None if context is None else _from_encoder(context.encoder),
        context_gaps=() if context is None else context.gaps,
        history=None if history is None else _from_frame(history),
        known_user_id_type=None if dataset is None else _id_type(dataset.user_id_map.external_ids),
    )
    return {
        STATE: _json(state),
        WEIGHTS: safetensors.numpy.save(arrays),
        USER_IDS: _ids_to_parquet(reader.user_ids, "user"),
        ITEM_IDS: _ids_to_parquet(reader.item_ids, "item"),
        **of_users,
    }


def _contents_of_users(reader: DatasetReader, dataset: Dataset) -> dict[str, bytes]:
    users = reader.users(reader.align(dataset), np.arange(dataset.user_id_map.size))
    histories, features = users.histories, users.features
    parts = {"histories.indptr": histories.indptr, "histories.indices": histories.items}
    if histories.weights is not None:
        parts["histories.weights"] = histories.weights
    arrays = _flat({**parts, "features.categories": features.categories, "features.numbers": features.numeric})
    for name, what in (("histories.weights", "weights of interactions"), ("features.numbers", "numeric user features")):
        if name in arrays and not _is_sound(name, arrays[name]):
            raise ValueError(f"`dataset` has {what} that are too large to add up or to standardise: correct them")
    return {
        KNOWN_USER_IDS: _ids_to_parquet(dataset.user_id_map.external_ids, "user"),
        USERS: safetensors.numpy.save(arrays),
    }


def _arrays_of_reader(reader: DatasetReader) -> dict[str, np.ndarray]:
    encoders = {"user_features": reader.user_encoder, "item_features": reader.item_encoder}
    if reader.context_encoder is not None:
        encoders["context"] = reader.context_encoder.encoder
    arrays: dict[str, Any] = {"popularity": reader.popularity}
    for name, encoder in encoders.items():
        arrays |= {f"{name}.mean": encoder.mean, f"{name}.std": encoder.std}
    arrays |= {"item_features.categories": reader.item_features.categories}
    arrays |= {"item_features.numbers": reader.item_features.numeric}
    return _flat({f"reader.{name}": array for name, array in arrays.items()})


def _flat(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Take sparse matrices apart; their shapes follow from the rest of the model."""
    flat: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        parts = {name: array}
        if sparse.issparse(array):
            parts = {f"{name}.{part}": getattr(array, part) for part in ("data", "indices", "indptr")}
        flat |= {key: np.asarray(part, order="C") for key, part in parts.items()}
    return flat


def _is_sound(name: str, array: np.ndarray) -> bool:
    if name.startswith("reader.") and name.endswith(".std"):
        return bool((array > 0).all())  # of numbers that are constant it is infinite
    return bool(np.isfinite(array).all())


def _from_encoder(encoder: FeatureEncoder) -> _Features:
    schema = encoder.schema
    return _Features(
        kind=encoder.kind,  # type: ignore[arg-type]
        fields=tuple(_tag(name) for name in schema.fields),
        values=tuple((_tag(name), _tag(value)) for name, value in schema.values),
        numeric=tuple(_tag(name) for name in schema.numeric),
    )


def _tag(value: object) -> _Scalar:
    if type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value  # type: ignore[return-value]
    for name, kind in _TYPES.items():
        if type(value) is kind:
            plain: Any = value.item() if isinstance(value, np.generic) else value
            is_json = not isinstance(plain, float) or math.isfinite(plain)
            return _Tagged(type=name, value=plain if is_json else str(plain))
    raise ValueError(
        f"A feature has the value {value!r} of the type {type(value).__name__}, which the files can't hold: make it a "
        "string or a number and fit the model again, or save the model with `save`"
    )


def _untag(value: _Scalar) -> Any:
    return value.plain() if isinstance(value, _Tagged) else value


def _from_frame(history: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    columns = {str(name): history[name].tolist() for name in history.columns}
    return {name: tuple(None if pd.isna(value) else value for value in values) for name, values in columns.items()}


def _id_type(ids: np.ndarray) -> str:
    return "object" if ids.dtype.kind == "U" else ids.dtype.name


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary()}
_ID_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")


def _ids_to_parquet(ids: np.ndarray, side: str) -> bytes:
    advice = f"give all {side} ids as strings, or all as integers, and fit the model again, or save it with `save`"
    if ids.dtype.name in _ID_TYPES:
        column = pa.array(ids)
    elif ids.dtype.kind in "OU":
        values = [value.item() if isinstance(value, np.generic) else value for value in ids]
        kinds = sorted({type(value).__name__ for value in values})
        kind = type(values[0])
        if len(kinds) > 1 or kind not in _ARROW_TYPES:
            raise ValueError(f"The {side} ids are of the types {kinds}, which parquet can't hold: {advice}")
        try:
            column = pa.array(values, _ARROW_TYPES[kind])
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise ValueError(f"Parquet can't hold the {side} ids ({error}): {advice}") from error
    else:
        raise ValueError(f"The {side} ids are of the type {ids.dtype}, which can't be saved: {advice}")
    table = pa.table([column], pa.schema([pa.field("id", column.type, nullable=False)]))
    sink = pa.BufferOutputStream()
    # Plain values alone: a reader then knows from the size of the file what it may hold.
    pq.write_table(table, sink, compression="none", use_dictionary=False, store_schema=False)
    return sink.getvalue().to_pybytes()


def _check_replaceable(folder: str | os.PathLike[str]) -> None:
    target = find_folder(os.path.realpath(folder))
    if not target.exists():
        return
    refusal = f"{target} exists and is no folder of a saved model: delete it, or choose another one"
    if not target.is_dir():
        raise FileExistsError(refusal)
    entries = list(target.iterdir())
    if not entries:
        return
    others = [e.name for e in entries if e.name not in _ALL or e.is_symlink() or not e.is_file()]
    if others:
        raise FileExistsError(f"{refusal}. It has {others[:5]}, which would be lost")
    try:
        data = _read(target / CONFIG, _size(target / CONFIG, _MAX_CONFIG))
        is_ours = "rectools-neural" in _Version.model_validate_json(data).packages
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise FileExistsError(refusal)


# ---------------------------------------------------------------------- loading


def from_pretrained(folder: str | os.PathLike[str]) -> PackModel[Any]:
    """
    Load a model that `save_pretrained` has written.

    No code is taken from the files, nor imported by a name in them: a folder that others have made can't do more than
    recommend badly. `get_trainer_func` and `get_trainer_func_kwargs` are not in the files.

    Parameters
    ----------
    folder : path
        The folder.

    Returns
    -------
    PackModel
        The fitted model; it recommends exactly what the saved one does.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If a file is damaged, was changed, or is of another version of the format.

    Examples
    --------
    >>> from rectools_neural import from_pretrained
    >>> model = from_pretrained("models/dssm")  # doctest: +SKIP
    """
    return load_all(folder).model


@dataclass(frozen=True)
class Saved:
    """
    What a folder holds.

    Parameters
    ----------
    model : PackModel
        The fitted model.
    user_ids : np.ndarray or None
        External ids of the users; None where the folder was written without a dataset.
    users : Users or None
        What the model knows of them.
    version : str
        The start of a checksum of everything, by which two states of a folder are told apart.
    """

    model: PackModel[Any]
    user_ids: np.ndarray | None
    users: Users | None
    version: str


def load_all(folder: str | os.PathLike[str]) -> Saved:
    """
    Load a model and the users saved with it.

    Both are of one state of the folder, even where it is replaced at the same time.

    Parameters
    ----------
    folder : path
        The folder.

    Returns
    -------
    Saved
        The model and the users.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `from_pretrained`.
    """
    files = _read_folder(Path(folder))
    with files.blaming(CONFIG):
        model, fitted_config = _make_model(files.index)
    with files.blaming(STATE):
        state = _State.model_validate_json(files.contents[STATE])
        schemas = _schemas(state)
        history = None if state.history is None else _to_frame(state.history)
        if (state.known_user_id_type is not None) != (USERS in files.contents):
            raise ValueError("`known_user_id_type` must be there if, and only if, there are users")
    with files.blaming(USER_IDS):
        user_ids = _ids_from_parquet(files.contents[USER_IDS], state.user_id_type)
    with files.blaming(ITEM_IDS):
        item_ids = _ids_from_parquet(files.contents[ITEM_IDS], state.item_id_type)
    with files.blaming(WEIGHTS):
        arrays = StoredArrays(safetensors.numpy.load(files.contents.pop(WEIGHTS)))
        reader = _make_reader(state, schemas, user_ids, item_ids, arrays)
        model._restore(fitted_config, reader, arrays)
        arrays.check_all_taken()
    if history is not None:
        model.history = history  # type: ignore[attr-defined]  # neural models have it
    model.is_fitted = True
    if state.known_user_id_type is None:
        return Saved(model, None, None, files.version)
    with files.blaming(KNOWN_USER_IDS):
        known_ids = _ids_from_parquet(files.contents[KNOWN_USER_IDS], state.known_user_id_type)
    with files.blaming(USERS):
        arrays = StoredArrays(safetensors.numpy.load(files.contents.pop(USERS)))
        users = _make_users(reader, known_ids, arrays)
        arrays.check_all_taken()
    return Saved(model, known_ids, users, files.version)


class StoredArrays:
    """
    The arrays of a file, each to be taken once and checked on the way.

    Parameters
    ----------
    arrays : dict
        By name.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def take(self, name: str, dtype: Any, *shape: int | None) -> np.ndarray:
        """
        Take an array.

        Parameters
        ----------
        name : str
            Its name.
        dtype : dtype
            What it must be of.
        *shape : int or None
            What its shape must be; None for sizes that may be any.

        Raises
        ------
        ValueError
            If it is not there, is of another type or shape, or has values that are not finite.
        """
        if name not in self._arrays:
            raise ValueError(f"`{name}` is missing")
        array = self._arrays.pop(name)
        sizes = tuple(found if size is None else size for found, size in zip(array.shape, shape, strict=False))
        if array.dtype != dtype or array.ndim != len(shape) or array.shape != sizes:
            expected = f"{np.dtype(dtype)} of shape {shape}"
            raise ValueError(f"`{name}` is {array.dtype} of shape {array.shape}, but must be {expected}")
        if not _is_sound(name, array):
            raise ValueError(f"`{name}` has values that are not finite")
        return array

    def take_sparse(self, name: str, dtype: Any, n_rows: int, n_columns: int) -> sparse.csr_matrix:
        """Take a sparse matrix; parameters and errors as for `take`, also for indices out of range."""
        data = self.take(f"{name}.data", dtype, None)
        indices, indptr = (
            self.take(key, np.int64 if self._is_long(key) else np.int32, size)
            for key, size in ((f"{name}.indices", len(data)), (f"{name}.indptr", n_rows + 1))
        )
        _check_rows(name, indices, indptr, n_columns)
        return sparse.csr_matrix((data, indices, indptr), shape=(n_rows, n_columns))

    def _is_long(self, name: str) -> bool:
        # SciPy uses 64 bits where 32 are not enough, or where it was given them.
        return name in self._arrays and self._arrays[name].dtype == np.int64

    def check_all_taken(self) -> None:
        """Raise where arrays are left over."""
        if self._arrays:
            raise ValueError(f"there are unknown arrays: {sorted(self._arrays)[:5]}")


def _check_rows(name: str, indices: np.ndarray, indptr: np.ndarray, n_columns: int) -> None:
    # Compared, as differences may overflow.
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"`{name}.indptr` doesn't divide the {len(indices)} entries into rows")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_columns:
        raise ValueError(f"`{name}.indices` has columns outside 0 to {n_columns - 1}")


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the content of a file into one clear error."""
    try:
        yield
    except Exception as error:  # parsers of foreign data raise of everything
        raise ValueError(f"{path} is damaged or was changed: {_reason(error)}. {_AGAIN}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
    return str(error).partition("\n")[0] or type(error).__name__  # torch adds where in its code


@dataclass(frozen=True)
class _Files:
    """All files of one state of a folder, of the sizes and checksums that `config.json` tells."""

    path: Path
    index: _Index
    contents: dict[str, bytes]
    version: str

    def blaming(self, name: str) -> AbstractContextManager[None]:
        return _blaming(self.path / name)


def _read_folder(folder: Path) -> _Files:
    """Read all files, again where others took their place meanwhile; the checksums tell that none are mixed."""
    for _ in range(_ATTEMPTS - 1):
        before = _identity(folder)
        try:
            return _read_files(_locate(folder))
        except (OSError, ValueError):
            if _identity(folder) == before:
                raise
    return _read_files(_locate(folder))


def _identity(folder: Path) -> list[tuple[int, int] | None]:
    """Tell a folder, and the old one beside it, from others that take their places."""
    found: list[tuple[int, int] | None] = []
    for path in (folder, old_folder(folder)):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_ctime_ns))
    return found


def _read_files(path: Path) -> _Files:
    index, checksum = _read_index(path / CONFIG)
    for name, file in index.files.items():
        _check_size(path / name, file)
    contents = {name: _read_checked(path / name, file) for name, file in index.files.items()}
    return _Files(path, index, contents, checksum)


def _locate(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder of `save_pretrained`: a file of `save` is for `load_model`")
    found = find_folder(folder)
    if not found.exists():
        raise FileNotFoundError(f"There is no folder {folder}: name one that `save_pretrained` has written")
    return found


def _read_index(path: Path) -> tuple[_Index, str]:
    """Read `config.json`; the text is the start of its checksum."""
    size = _size(path, _MAX_CONFIG)
    with _blaming(path):
        data = _read(path, size)
        header = _Version.model_validate_json(data)
    if header.format != FORMAT:
        written = header.packages.get("rectools-neural")
        raise ValueError(
            f"{path} is of version {header.format} of the format, which rectools-neural {written} has written; this is "
            f"rectools-neural {version('rectools-neural')}, which reads version {FORMAT}: install the version that has "
            "written it, or fit and save the model again with this one"
        )
    with _blaming(path):
        index = _Index.model_validate_json(data)
        if set(index.files) not in ({*_CONTENTS}, {*_CONTENTS, *_OF_USERS}):
            raise ValueError(f"`files` must name {', '.join(_CONTENTS)}, and {' and '.join(_OF_USERS)} or neither")
    return index, hashlib.sha256(data).hexdigest()[:12]


def _size(path: Path, limit: int) -> int:
    """Size of a file, without opening it: a pipe would block, a device would never end."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. {_AGAIN}")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file. {_AGAIN}")
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} has {size} bytes, more than the {limit} that it may have. {_AGAIN}")
    return size


def _check_size(path: Path, file: _File) -> None:
    size = _size(path, file.size)
    if size != file.size:
        raise ValueError(f"{path} has {size} of {file.size} bytes. {_AGAIN}")


def _read(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _read_checked(path: Path, file: _File) -> bytes:
    with _blaming(path):
        data = _read(path, file.size)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise ValueError("its checksum is not that of config.json")
    return data


def _make_model(index: _Index) -> tuple[PackModel[Any], Any]:
    """Make the model, not fitted, and the options that it was fitted with."""
    options = dict(index.config)
    name = str(options.pop("cls", None)).removeprefix("rectools_neural.")
    if name not in MODELS:
        raise ValueError(f"`cls` names no model of rectools_neural: {', '.join(sorted(MODELS))}")
    cls: type[PackModel[Any]] = getattr(importlib.import_module(MODELS[name]), name)
    configs = []
    for given in (options, index.fitted_config):
        # A name of a function would be imported.
        forbidden = [option for option in ("cls", *_NOT_SAVED) if option in given]
        if forbidden:
            raise ValueError(f"the options {forbidden} have no place there")
        _check_layers(given)
        configs.append(cls.config_class(**{"cls": cls, **given}))
    return cls.from_config(configs[0]), configs[1]


def _check_layers(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, dict):
            _check_layers(value)
        elif name == "n_layers" and isinstance(value, int | float | str) and float(value) > _MAX_LAYERS:
            raise ValueError(f"`n_layers` is {value}, but may be {_MAX_LAYERS} at most")


def _to_frame(history: Mapping[str, tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame({name: [math.nan if v is None else v for v in values] for name, values in history.items()})


def _schemas(state: _State) -> dict[str, FeatureSchema]:
    parts = {"user_features": state.user_features, "item_features": state.item_features}
    if (state.context is not None) != state.reading.context:
        raise ValueError("`context` must be there if, and only if, `reading` names columns of it")
    if state.context is not None:
        parts["context"] = state.context
    return {name: _schema(features) for name, features in parts.items()}


def _schema(features: _Features) -> FeatureSchema:
    fields, numeric = (tuple(_untag(name) for name in names) for names in (features.fields, features.numeric))
    values = tuple((_untag(name), _untag(value)) for name, value in features.values)
    schema = FeatureSchema(fields, values, numeric)
    if schema.is_empty != (features.kind == "none") or (features.kind == "dense" and fields):
        raise ValueError(f"there are other features than `kind` {features.kind} has")
    if not {name for name, _ in values} <= set(fields):
        raise ValueError("there are values of features that are not among the `fields`")
    return schema


def _ids_from_parquet(data: bytes, dtype: str) -> np.ndarray:
    # Texts are read as a dictionary: else a file of few bytes may repeat a long one until the memory is full.
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["id"])
    schema, n_rows = file.schema_arrow, file.metadata.num_rows
    if schema.names != ["id"] or schema.field(0).nullable or file.metadata.metadata:
        raise ValueError("it must have the one column `id`, without missing values, and nothing else")
    if not 0 < 4 * n_rows <= len(data):
        raise ValueError(f"it can't have {n_rows} rows")
    parts, size = [], 0
    # In parts, to stop where a compressed file holds more than its size. That it is compressed can't be asked: on
    # some damaged files the question alone ends the process (pyarrow 23).
    for batch in file.iter_batches(_IDS_AT_ONCE, use_threads=False):
        column = batch.column(0)
        size += 4 * len(column)
        if pa.types.is_dictionary(column.type):
            size += pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
        if size > len(data):
            raise ValueError("it must not be compressed, and ids must not be there twice")
        parts.append(_ids_from_arrow(column, dtype))
    ids = np.concatenate(parts)
    if len(ids) != n_rows or not pd.Index(ids).is_unique:
        raise ValueError("ids are missing or there twice")
    return ids


def _ids_from_arrow(column: pa.Array, dtype: str) -> np.ndarray:
    is_text = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if is_text else column.type
    if dtype not in ("object", *_ID_TYPES):
        raise ValueError(f"`{dtype}` is no type of ids")
    if kind not in (_ARROW_TYPES.values() if dtype == "object" else [pa.from_numpy_dtype(dtype)]):
        raise ValueError(f"ids of the type {kind} don't fit the type {dtype} of state.json")
    if column.null_count:
        raise ValueError("ids are missing")
    if not is_text:
        return column.to_numpy().astype(dtype)
    if len(pc.unique(column.indices)) < len(column):
        raise ValueError("ids are there twice")
    return column.dictionary_decode().to_numpy(zero_copy_only=False)


def _make_reader(
    state: _State,
    schemas: Mapping[str, FeatureSchema],
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    arrays: StoredArrays,
) -> DatasetReader:
    def encoder(part: str, side: str, features: _Features) -> FeatureEncoder:
        schema = schemas[part]
        numbers = (arrays.take(f"reader.{part}.{of}", np.float32, len(schema.numeric)) for of in ("mean", "std"))
        return FeatureEncoder(side, features.kind, schema, *numbers)

    n_items, reading, schema = len(item_ids), state.reading, schemas["item_features"]
    popularity = arrays.take("reader.popularity", np.int64, n_items)
    if (popularity < 0).any():
        raise ValueError("`reader.popularity` has negative numbers")
    categories = arrays.take_sparse("reader.item_features.categories", np.float32, n_items, schema.n_categories)
    numbers = arrays.take("reader.item_features.numbers", np.float32, n_items, len(schema.numeric))
    context = None
    if state.context is not None:
        columns = reading.context_numeric, reading.context_categorical, state.context_gaps
        context = ContextEncoder(*columns, encoder("context", "context", state.context))
    return DatasetReader(
        user_ids,
        item_ids,
        encoder("user_features", "user", state.user_features),
        encoder("item_features", "item", state.item_features),
        EncodedFeatures(schema, categories, numbers),
        popularity,
        reading,
        context,
    )


def _make_users(reader: DatasetReader, ids: np.ndarray, arrays: StoredArrays) -> Users:
    n_users, n_items, schema = len(ids), len(reader.item_ids), reader.user_encoder.schema
    items = arrays.take("histories.indices", np.int64, None)
    indptr = arrays.take("histories.indptr", np.int64, n_users + 1)
    _check_rows("histories", items, indptr, n_items)
    weights = None
    if reader.reading.weights:
        weights = arrays.take("histories.weights", np.float64, len(items))
        if not (weights > 0).all():
            raise ValueError("`histories.weights` has numbers that are not positive")
    categories = arrays.take_sparse("features.categories", np.float32, n_users, schema.n_categories)
    numbers = arrays.take("features.numbers", np.float32, n_users, len(schema.numeric))
    return Users(
        match(ids, reader.user_ids),
        Histories(indptr, items, n_items, weights),
        EncodedFeatures(schema, categories, numbers),
    )

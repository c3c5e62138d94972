"""Reading and writing files: YAML as DVC reads it, and atomic, byte-reproducible writes."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import yaml

from mlops_project.errors import DataError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import pandas as pd

# Six digits show every difference that means something and hide those that only the processor makes.
METRIC_DIGITS = 6

APPLICANT_ID = "applicant_id"
NEEDS_PYARROW = "Parquet needs pyarrow; run `uv pip install -e '.[parquet]'`"

# Between making a temporary file and locking it passes less.
SECONDS_TO_LOCK = 1.0


class _DvcYamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.2 scalars, as DVC reads them: ``1e-05`` is a number, ``on`` and ``yes`` are text; no doubled keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_DvcYamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_DvcYamlLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_DvcYamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9_]+)$"), list("-+0123456789")
)
_DvcYamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|[-+]?\.[0-9_]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def _unique_mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_DvcYamlLoader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    """YAML 1.2 has no octal "010" and no base 60; "0o17", "0x1f" and "1_000" are numbers to DVC."""
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0 if text.lstrip("-+")[:2] in ("0b", "0o", "0x") else 10)


_DvcYamlLoader.add_constructor("tag:yaml.org,2002:int", _integer)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with the scalar rules of YAML 1.2, the ones DVC applies.

    Raises
    ------
    PipelineError
        If the file is absent, unreadable, not valid YAML or not a mapping.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_DvcYamlLoader)  # noqa: S506 - a subclass of the safe loader
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found in {Path.cwd()}; run from the folder that holds dvc.yaml") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:  # TypeError: a mapping or list as a key
        raise PipelineError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: found {type(content).__name__}, expected keys with values")
    return content


@contextlib.contextmanager
def atomic_path(path: str | Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it, with these permissions, only if the block succeeds.

    A writer locks its temporary file; the lock goes with the process. So the next writer tells what a killed one left
    behind from the file of one that is at work, and removes the former.

    Raises
    ------
    PipelineError
        If the folder cannot be written or the disk is full; ``path`` is then as it was before.
    """
    path = Path(path)
    temporary, lock = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        lock, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary = Path(name)
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PipelineError(
            f"{path}: cannot be written ({reason}); nothing was changed; check the folder's permissions and free space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if lock >= 0:
            os.close(lock)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as stream:  # another writer may be faster, or hold the lock
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Just made and not locked yet is not abandoned.
            if time.time() - os.fstat(stream.fileno()).st_mtime > SECONDS_TO_LOCK:
                left.unlink()


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[str]:
    """Yield a new folder in the working directory, which goes when the block ends; what killed processes left there goes first.

    As in `atomic_path` a lock tells the folder of a process at work from one that was left.
    """
    for left in Path().glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError), _locked(left):
            if time.time() - left.stat().st_mtime > SECONDS_TO_LOCK:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=".", prefix=prefix) as folder, _locked(folder):
        yield folder


@contextlib.contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def rounded(value: Any) -> Any:
    """Copy a JSON-like structure with floats at ``METRIC_DIGITS`` digits and NumPy scalars as Python's own."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return round(value, METRIC_DIGITS) if isinstance(value, float) else value


def write_json(content: dict[str, Any], path: str | Path) -> None:
    """Write a JSON file with rounded floats and a final newline. NaN is refused: it is not JSON."""
    text = json.dumps(rounded(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_table(table: pd.DataFrame | pd.Series, path: str | Path, *, index: bool = True) -> None:
    """Write a CSV file (UTF-8, comma, LF), by default with the index, which holds the applicant ids.

    ``-`` is standard output; a path that ends in .parquet becomes Parquet.

    Raises
    ------
    DataError
        If pyarrow is needed and not there.
    """
    if str(path) == "-":
        if sys.stdout is None:  # closed by the caller (`>&-`): pandas would write nowhere
            raise PipelineError("standard output: is closed; leave it open, or name a file")
        table.to_csv(sys.stdout, index=index, lineterminator="\n")
        return
    with TableWriter(path, index=index) as writer:
        writer.write(table)


def require_form(tables: str) -> None:
    """Raise DataError if tables cannot be written in a form, csv or parquet: before the rows are read, not after."""
    if tables == "parquet" and find_spec("pyarrow") is None:
        raise DataError(f"data.tables = parquet: {NEEDS_PYARROW}, or set data.tables: csv in params.yaml")


class TableWriter:
    """Writes a table part by part, as `write_table` writes it at once: a context that replaces the file only if all went well.

    Parameters
    ----------
    path : str or Path
        A path that ends in .parquet becomes Parquet, one row group per part, with the index as a column; all others CSV.
    index : bool
        Whether the index, which holds the applicant ids, is written.

    Raises
    ------
    DataError
        If pyarrow is needed and not there.
    PipelineError
        As `atomic_path`.
    """

    def __init__(self, path: str | Path, *, index: bool = True) -> None:
        self.path = Path(path)
        self.index = index
        self._stack = contextlib.ExitStack()
        self._stream: Any = None

    def __enter__(self) -> Self:
        self._temporary = self._stack.enter_context(atomic_path(self.path))
        return self

    def __exit__(self, *found: object) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stack.__exit__(*found)  # type: ignore[arg-type]

    def write(self, part: pd.DataFrame | pd.Series) -> None:
        """Write some rows. All parts have the same columns and types."""
        if self.path.suffix == ".parquet":
            self._write_parquet(part)
            return
        first = self._stream is None
        if first:
            self._stream = open(self._temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115 - until the block ends
        part.to_csv(self._stream, index=self.index, header=first, lineterminator="\n")

    def _write_parquet(self, part: pd.DataFrame | pd.Series) -> None:
        import pandas as pd

        try:
            import pyarrow as pa
            from pyarrow.parquet import ParquetWriter
        except ImportError:
            raise DataError(f"{self.path}: {NEEDS_PYARROW}") from None
        frame = pd.DataFrame(part)
        # Columns in which nobody has a value would be of no type.
        schema = None if self._stream is None else self._stream.schema
        table = pa.Table.from_pandas(frame.reset_index() if self.index else frame, schema, preserve_index=False)
        if self._stream is None:
            nothing = [i for i, field in enumerate(table.schema) if pa.types.is_null(field.type)]
            for i in nothing:
                field = pa.field(table.schema.names[i], pa.string())
                table = table.set_column(i, field, table.column(i).cast(pa.string()))
            self._stream = ParquetWriter(self._temporary, table.schema)
        self._stream.write_table(table)


def _read_csv(source: str | Path | BinaryIO, name: str, types: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    from mlops_project.csv_files import check_rows

    if not isinstance(source, str | Path):  # it is read twice
        source = io.BytesIO(source.read())
    error = None
    try:
        table = pd.read_csv(source, dtype=types, keep_default_na=False, na_values=[""], low_memory=False)
    except pd.errors.ParserError as found:
        error = found
    # pandas fills short rows up, so they end in a missing cell, and where all are long it takes the first cells for an index.
    if error or table.iloc[:, -1].isna().any() or not table.index.equals(pd.RangeIndex(len(table))):
        check_rows(source, name)
    if error:
        raise error
    return table


def read_table(
    path: str | Path | BinaryIO,
    text: Iterable[str] = (),
    *,
    named: bool = True,
    ids: bool = True,
    at_most: int | None = None,
) -> pd.DataFrame:
    """Read a table that ``write_table`` wrote: the index is the applicant id, empty cells are missing.

    ``-`` is CSV on standard input; a stream is what it begins with.

    The columns in ``text`` (`Contract.text_columns`) stay text: as a number, the code "01" would lose its zero.
    Unless the rows must be ``named``, those of a table without applicant ids are numbered from 1 on, in an index ``row``.
    Without ``ids`` those of millions of applicants do not take up memory: rows are numbered from 0 on. Of more rows than
    ``at_most`` so many are taken, evenly spread.

    Raises
    ------
    DataError
        If the file is absent or empty, or has no column of applicant ids and must have one.
    """
    import pandas as pd

    name = "standard input" if str(path) == "-" else path
    try:
        # Only empty cells are missing: a category may be called "none" or "NA".
        as_text = dict.fromkeys([APPLICANT_ID, *text], str)
        if _is_parquet(path):
            table = _read_parquet(path, ids=ids, at_most=at_most)
        else:
            table = _read_csv(sys.stdin.buffer if str(path) == "-" else path, str(name), as_text)
            table = table if at_most is None or len(table) <= at_most else table.iloc[spread(len(table), at_most)]
    except ImportError:
        raise DataError(f"{name}: {NEEDS_PYARROW}") from None
    except FileNotFoundError:
        raise DataError(f"{name}: not found; run `dvc repro` (or the stage that writes it) first") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(
            f"{name}: cannot be read: {reason}; expected CSV in UTF-8 with commas, or a file that ends in .parquet, as"
            " `dvc repro prepare` or `mlops-prepare-data --save` writes it"
        ) from error
    if APPLICANT_ID not in table and named and ids:
        raise DataError(f"{name}: found columns {list(table.columns)[:5]}, expected {APPLICANT_ID!r}; rerun `dvc repro prepare`")
    if table.empty:
        raise DataError(f"{name}: holds no rows; expected one or more, as `dvc repro prepare` writes them")
    if not ids:
        return table.drop(columns=APPLICANT_ID, errors="ignore")
    if APPLICANT_ID in table:
        return table.set_index(APPLICANT_ID)
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="row"))


def _read_parquet(path: str | Path | BinaryIO, *, ids: bool, at_most: int | None) -> pd.DataFrame:
    """Read column by column: all together they would be there twice for a moment."""
    import pandas as pd
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
        n_rows = file.metadata.num_rows
        rows = None if at_most is None or n_rows <= at_most else spread(n_rows, at_most)

        def column(name: str) -> pd.Series:
            found = file.read([name]).column(0)
            return (found if rows is None else found.take(rows)).to_pandas()

        return pd.DataFrame({name: column(name) for name in names if ids or name != APPLICANT_ID}, copy=False)


def spread(n_rows: int, n: int) -> np.ndarray:
    """Return ``n`` positions at even distance among ``n_rows``, or all of them if they are fewer."""
    import numpy as np

    return np.arange(n_rows) if n_rows <= n else np.linspace(0, n_rows - 1, n).round().astype(int)


def _is_parquet(path: str | Path | BinaryIO) -> bool:
    if isinstance(path, str | Path):
        return Path(path).suffix == ".parquet"
    begins = path.read(4)
    path.seek(-len(begins), io.SEEK_CUR)
    return begins == b"PAR1"


def read_ids(path: str | Path) -> pd.Series:
    """Read the applicant ids of a table that ``write_table`` wrote, and no more of it."""
    import pandas as pd

    if Path(path).suffix == ".parquet":
        # A column, or the index of a table that was written at once.
        return pd.read_parquet(path, columns=[APPLICANT_ID]).reset_index()[APPLICANT_ID]
    return pd.read_csv(path, usecols=[APPLICANT_ID], dtype=str, keep_default_na=False)[APPLICANT_ID]


def read_outcomes(path: str | Path | BinaryIO, X: pd.DataFrame, target: str) -> pd.Series:
    """Read the outcomes of the rows ``X``, in their order.

    Raises
    ------
    DataError
        As `read_table`; or if a row has no outcome.
    """
    y = read_table(path)[target]
    # Both were written together. Looking up millions of ids takes gigabytes.
    if y.index.equals(X.index):
        return y.set_axis(X.index)  # one index for both
    if absent := int((~X.index.isin(y.index)).sum()):
        raise DataError(f"{path}: found no outcome for {absent} of {len(X)} applicants; take rows and outcomes of one run")
    return y.loc[X.index]

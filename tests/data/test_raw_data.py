"""The script that builds the raw files, the data card and the data contract say the same thing."""

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import build_raw_data
from build_raw_data import SOURCE, TOKENS, make_dirty, read_arff, recode, write_csv

ROOT = Path(__file__).parents[2]
CLEAN_FILE = ROOT / "data/raw/german_credit_original.csv"
CARD = (ROOT / "data/raw/README.md").read_text(encoding="utf-8")
SCHEMA = yaml.safe_load((ROOT / "data/schema.yaml").read_text(encoding="utf-8"))
RATES = ("copies", "altered", "missing", "tokens", "case")


def _no_dirt_but(**rates: float) -> dict[str, Any]:
    return dict.fromkeys(RATES, 0.0) | rates


def _card_table(header: str) -> list[list[str]]:
    lines = CARD[CARD.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def numbers() -> pd.DataFrame:
    """Make a table with neither the names nor the size of the German one, target first, values distinct."""
    values = np.arange(1.0, 1001.0).reshape(200, 5)
    return pd.DataFrame(values, columns=["good", "income", "age", "debt", "share"])


def _numeric(table: pd.DataFrame) -> np.ndarray:
    return table.drop(columns="mixed_type_col").to_numpy(dtype=float)


def test_without_dirt_only_the_layout_changes(numbers: pd.DataFrame) -> None:
    dirty = make_dirty(numbers, 1, target="good", **_no_dirt_but())
    assert list(dirty.columns) == ["income", "age", "debt", "share", "good", "mixed_type_col"]
    assert dirty["age"].tolist() == [repr(value) for value in numbers["age"].tolist()]
    assert (_numeric(dirty) == numbers[dirty.columns[:-1]].to_numpy()).all()


def test_copies_are_distinct_rows_at_the_end(numbers: pd.DataFrame) -> None:
    dirty = make_dirty(numbers, 1, target="good", **_no_dirt_but(copies=0.1))
    copies = dirty["income"].iloc[200:]
    assert len(copies) == copies.nunique() == 20
    assert copies.isin(dirty["income"].iloc[:200]).all()


def test_half_of_the_altered_cells_are_shifted_and_half_are_scaled(numbers: pd.DataFrame) -> None:
    dirty = make_dirty(numbers, 1, target="good", **_no_dirt_but(altered=0.2))
    before = numbers[dirty.columns[:-1]].to_numpy()
    after = _numeric(dirty)
    changed = before != after
    assert changed.sum() == 200
    shifted = np.isin(after - before, np.arange(100, 1000)) & changed
    scaled = np.isin(after / before, np.arange(10, 100)) & changed
    assert (shifted | scaled)[changed].all()
    assert min(shifted.sum(), scaled.sum()) >= 100


def test_missing_cells_are_empty_and_tokens_are_from_the_list(numbers: pd.DataFrame) -> None:
    empty = make_dirty(numbers, 1, target="good", **_no_dirt_but(missing=0.1)).drop(columns="mixed_type_col")
    assert (empty == "").to_numpy().sum() == 100
    dirty = make_dirty(numbers, 1, target="good", **_no_dirt_but(tokens=0.1)).drop(columns="mixed_type_col")
    assert dirty.isin(TOKENS).to_numpy().sum() == 100
    assert set(dirty.to_numpy().ravel()) >= set(TOKENS)


def test_swapped_cells_keep_one_space_on_either_side(numbers: pd.DataFrame) -> None:
    rates = _no_dirt_but(missing=0.1, tokens=0.1, case=1.0)
    dirty = make_dirty(numbers, 1, target="good", **rates).drop(columns="mixed_type_col")
    texts = set(dirty.to_numpy().ravel())
    words = {text for text in texts if not re.fullmatch(r" \d+\.0 ", text)}
    assert words == {" NAN ", " INVALID ", " n/a ", " ? ", " null ", " ERROR "}


def test_mixed_type_column_has_its_shares() -> None:
    noise = make_dirty(pd.DataFrame({"good": np.zeros(20_000)}), 1, target="good", copies=0)["mixed_type_col"]
    shares = noise.where(~noise.str.fullmatch(r"\d+"), "integer").value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"integer": 0.70, "unknown": 0.11, "bad": 0.10, "": 0.09}, abs=0.01)
    integers = noise[noise.str.fullmatch(r"\d+")].astype(int)
    assert (integers.min(), integers.max()) == (1, 998)


def test_one_seed_one_table(numbers: pd.DataFrame) -> None:
    before = numbers.copy()
    first = make_dirty(numbers, 1, target="good")
    pd.testing.assert_frame_equal(first, make_dirty(numbers, 1, target="good"))
    pd.testing.assert_frame_equal(numbers, before)
    assert not first.equals(make_dirty(numbers, 2, target="good"))


def test_any_numeric_dtype_is_taken_and_a_gap_stays_a_gap() -> None:
    table = pd.DataFrame({"a": [True, False], "b": pd.array([1, None], dtype="Int64"), "good": [0.5, np.nan]})
    dirty = make_dirty(table, 1, target="good", **_no_dirt_but())
    assert dirty.drop(columns="mixed_type_col").to_numpy().tolist() == [
        ["1.0", "1.0", "0.5"],
        ["0.0", "", ""],
    ]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": [1]}),
        pd.DataFrame({"good": [1], "mixed_type_col": [1]}),
        pd.DataFrame({"good": [1], "a": ["x"]}),
    ],
)
def test_tables_it_cannot_make_dirty_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"mixed_type_col|could not convert"):
        make_dirty(table, 1, target="good")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(pd.DataFrame({"a": [1, 2], "b": ["x", ""]}), path)
    assert path.read_bytes() == b"a,b\n1,x\n2,\n"
    with pytest.raises(UnicodeEncodeError):
        write_csv(pd.DataFrame({"a": ["\ud800"]}, dtype=object), path)
    assert path.read_bytes() == b"a,b\n1,x\n2,\n"
    assert list(tmp_path.iterdir()) == [path]


def _wheel(folder: Path, content: str) -> Path:
    path = folder / "source.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(build_raw_data.MEMBER, content)
    return path


def _arff(**changes: str) -> str:
    """Write a source with SOURCE's columns and one row: the second label of each column, '2' for a number."""
    header, row = ["@relation small"], []
    for name, codes in SOURCE.values():
        labels = [f"'<{code}, {name}'" for code in range(len(codes))]
        header.append(f"@attribute {name} " + (f"{{ {', '.join(labels)}}}" if labels else "real"))
        row.append(changes.get(name, labels[1] if labels else "2"))
    return "\n".join([*header, "@data", ",".join(row), ""])


def _read(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(build_raw_data, "SHA256", hashlib.sha256(content.encode()).hexdigest())
    return read_arff(_wheel(folder, content))


def test_a_label_becomes_the_code_of_its_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = recode(_read(tmp_path, _arff(purpose="'<10, purpose'"), monkeypatch))
    expected = dict.fromkeys(SOURCE, 2) | {"moral": 1, "verw": 10, "pers": 1, "gastarb": 1, "kredit": 0}
    assert clean.to_dict("records") == [expected]
    assert all(pd.api.types.is_integer_dtype(dtype) for dtype in clean.dtypes)


@pytest.mark.parametrize("label", ["'<7, purpose'", "'never declared'"])
def test_a_label_without_a_code_is_refused(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _read(tmp_path, _arff(purpose=label), monkeypatch)
    with pytest.raises(ValueError, match="without a code in purpose"):
        recode(rows)


def test_another_shape_of_the_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _read(tmp_path, _arff().replace("'<0, housing', ", ""), monkeypatch)
    with pytest.raises(ValueError, match="numbers of labels"):
        recode(rows)
    with pytest.raises(ValueError, match="found the columns"):
        recode(rows.iloc[:, ::-1])


def test_another_source_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^.*found sha256 .* expected 77024f6b.*--wheel$"):
        read_arff(_wheel(tmp_path, "something else"))
    (tmp_path / "page.whl").write_text("not a zip file")
    with pytest.raises(ValueError, match=r"^.*found no pysubgroup.*--wheel$"):
        read_arff(tmp_path / "page.whl")


def test_the_card_names_the_source_that_the_script_checks() -> None:
    assert f"`{build_raw_data.SHA256}`" in CARD


def test_the_card_and_the_contract_hold_the_same_columns() -> None:
    card = {}
    for name, english, kind, allowed, meaning in _card_table("column | English name"):
        codes = {int(code): text for code, text in re.findall(r"(\d+) = ([^;]+)(?:; |$)", allowed)}
        limits = [int(limit) for pair in re.findall(r"^(\d+) to (\d+) ", allowed) for limit in pair]
        card[name] = (english, kind, codes or limits, meaning)
    assert card.pop("mixed_type_col")[1] == "dropped"
    assert SCHEMA["drop"] == ["mixed_type_col"]
    target = SCHEMA["target"]
    assert card.pop("kredit") == (
        target["english"],
        "target",
        {target["good"]: "good", target["bad"]: "bad"},
        target["meaning"],
    )
    contract = {
        name: (column["english"], column["kind"], column.get("codes") or column["range"], column["meaning"])
        for name, column in SCHEMA["columns"].items()
    }
    assert card == contract
    assert list(card) == list(contract)


def test_the_contract_is_in_the_order_of_the_file() -> None:
    assert [*SCHEMA["columns"], SCHEMA["target"]["name"]] == list(SOURCE)
    assert "monotone" not in SCHEMA["columns"]["verm"]


def test_clean_file_is_the_one_on_the_card(clean_table: pd.DataFrame) -> None:
    assert f"`{hashlib.sha256(CLEAN_FILE.read_bytes()).hexdigest()}`" in CARD
    assert clean_table.shape == (1000, 21)
    assert clean_table["kredit"].value_counts().to_dict() == {1: 700, 0: 300}
    for name, column in SCHEMA["columns"].items():
        if "codes" in column:
            assert set(clean_table[name]) == set(column["codes"]), name
        else:
            assert clean_table[name].between(*column["range"]).all(), name
    bad_rate = 1 - clean_table.groupby("verm")["kredit"].mean()
    assert bad_rate.round(2).tolist() == [0.21, 0.31, 0.31, 0.44]


def test_dirty_file_is_the_one_on_the_card(clean_table: pd.DataFrame, tmp_path: Path) -> None:
    """Built anew from the clean file, because a team may have put its own dirty file in place."""
    dirty = make_dirty(clean_table, 42)
    write_csv(dirty, tmp_path / "dirty.csv")
    assert f"`{hashlib.sha256((tmp_path / 'dirty.csv').read_bytes()).hexdigest()}`" in CARD

    noise, cells = dirty["mixed_type_col"], dirty.drop(columns="mixed_type_col")
    text = cells.apply(lambda column: column.str.strip().str.lower())
    lost, token = text.isin(["", "nan"]), text.isin([token.lower() for token in TOKENS])
    number = text.mask(lost | token).astype(float)
    copied = make_dirty(clean_table, 42, **_no_dirt_but(copies=0.02)).drop(columns="mixed_type_col").astype(float)
    altered = number.notna() & (number != copied)
    allowed = {name: column.get("codes") for name, column in SCHEMA["columns"].items()} | {"kredit": [0, 1]}
    possible = pd.DataFrame(
        {
            name: number[name].isin(list(codes)) if codes else number[name].between(*SCHEMA["columns"][name]["range"])
            for name, codes in allowed.items()
        }
    )
    default = pd.read_csv(tmp_path / "dirty.csv").drop(columns="mixed_type_col").isna()
    counts = [
        text.size,
        lost.to_numpy().sum(),
        (text == "nan").to_numpy().sum(),
        token.to_numpy().sum(),
        cells.apply(lambda column: column.str.startswith(" ")).to_numpy().sum(),
        altered.to_numpy().sum(),
        (altered & ~possible).to_numpy().sum(),
        (lost | token | altered).any(axis=1).sum(),
        (~possible["kredit"]).sum(),
        default.to_numpy().sum(),
        noise.str.fullmatch(r"\d+").sum(),
        (noise == "").sum(),
    ]
    assert [f"{count:,}" for count in counts] == [number for _, number in _card_table("count of")]

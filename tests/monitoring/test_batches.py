"""New rows: what is refused, who is new, and that nobody moves."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_project.dataset import DataCleaner, DataLoader, DataSplitter, table_files
from mlops_project.errors import DataError
from mlops_project.monitoring.batches import _file_behind, append, labelled, logged_applicants, read_batch, refused
from mlops_project.serving.log import PredictionLog
from mlops_project.serving.records import Record, new_request_id, results
from mlops_project.serving.stores import open_store


@pytest.fixture
def raw(raw_table, tmp_path):
    path = tmp_path / "raw.csv"
    raw_table.to_csv(path, index=False)
    return path


def written(table: pd.DataFrame, tmp_path) -> str:
    path = tmp_path / "new.csv"
    table.to_csv(path, index=False)
    return str(path)


def refusal(path, contract, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_batch([path], contract, **{"max_bad_cells": 0.1} | options)
    return str(caught.value)


def test_files_that_are_no_use_are_refused_with_what_was_found(contract, new_rows, tmp_path):
    rows = new_rows(50, 1)
    target = contract.target.name
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    assert "is empty" in refusal(str(tmp_path / "empty.csv"), contract)
    assert "no such file" in refusal("absent.csv", contract)
    assert "a header and no rows" in refusal(written(rows[:0], tmp_path), contract)
    other = rows.rename(columns={contract.features[0]: "other"})
    assert f"column(s) {contract.features[0]} of the contract missing" in refusal(written(other, tmp_path), contract)
    assert f"column(s) {target} of the contract missing" in refusal(written(rows.drop(columns=target), tmp_path), contract)
    assert "all 50 outcomes are good" in refusal(written(rows.assign(**{target: 1}), tmp_path), contract)
    assert "none of 50 rows has an outcome" in refusal(written(rows.assign(**{target: ""}), tmp_path), contract)


def test_a_file_that_breaks_the_contract_too_often_is_refused_with_counts(contract, new_rows, tmp_path):
    rows = new_rows(50, 1).astype(object)
    rows.loc[:, contract.features[:3]] = "?"
    message = refusal(written(rows, tmp_path), contract)
    assert "150 of 1050 cells break the contract (14.3%" in message
    assert f"{contract.features[0]} 50" in message
    assert "at most 10.0%" in message
    assert read_batch([written(rows, tmp_path)], contract, 0.2).report["bad_cells"] == 150


def test_only_new_applicants_are_appended_and_the_old_bytes_stay(raw, raw_table, contract, params, new_rows, tmp_path):
    fresh = new_rows(60, 2).astype(str)
    old = raw_table[fresh.columns].iloc[:20]
    unlabelled = fresh.iloc[:3].assign(**{contract.target.name: "?"})
    batch = read_batch([written(pd.concat([old, fresh, fresh, unlabelled]), tmp_path)], contract, 0.1)
    before, applicants = raw.read_bytes(), DataCleaner(contract).clean(DataLoader(contract).load(raw))
    rows, ids = append(raw, batch, contract, params.prepare)
    assert raw.read_bytes().startswith(before)
    after = DataCleaner(contract).clean(DataLoader(contract).load(raw))
    assert list(after.table.index) == [*applicants.table.index, *ids]
    assert rows == len(ids) <= 60, "one row for each"
    held_out = [DataSplitter(params.prepare).held_out(found) for found in (applicants, after)]
    assert (held_out[1][: len(applicants.table)] == held_out[0]).all(), "nobody moves"
    assert held_out[1][len(applicants.table) :].mean() == pytest.approx(params.prepare.test_size, abs=0.2)
    with pytest.raises(DataError, match=r"are in raw\.csv already"):
        append(raw, batch, contract, params.prepare)


def test_the_delimiter_and_the_dropped_columns_of_the_raw_table_stay(raw_table, contract, params, new_rows, tmp_path):
    raw = tmp_path / "raw.csv"
    raw_table.to_csv(raw, index=False, sep=";")
    raw.write_bytes(raw.read_bytes().rstrip(b"\n"))
    batch = read_batch([written(new_rows(40, 3), tmp_path)], contract, 0.1)
    rows, _ = append(raw, batch, contract, params.prepare)
    found = pd.read_csv(raw, sep=";", dtype=str)
    assert list(found.columns) == list(raw_table.columns)
    assert len(found) == len(raw_table) + rows


def test_of_a_folder_no_file_is_touched_and_the_rows_stand_behind_all_others(raw_table, contract, params, new_rows, tmp_path):
    raw = tmp_path / "raw"
    for month, rows in (("2026-01", raw_table[:600]), ("2026-02", raw_table[600:])):
        (raw / f"month={month}").mkdir(parents=True)
        rows.to_csv(raw / f"month={month}/part.csv", index=False, sep=";")
    months = {path: path.read_bytes() for path in table_files(raw)}
    ids = list(DataCleaner(contract).clean(DataLoader(contract).load(raw)).table.index)
    for seed in (6, 7):
        batch = read_batch([written(new_rows(40, seed), tmp_path)], contract, 0.1)
        _, new = append(raw, batch, contract, params.prepare)
        ids += new
        assert list(DataCleaner(contract).clean(DataLoader(contract).load(raw)).table.index) == ids
    with pytest.raises(DataError, match="are in raw already"):
        append(raw, batch, contract, params.prepare)
    assert {path: path.read_bytes() for path in months} == months
    files = [path.relative_to(raw).as_posix() for path in table_files(raw)]
    assert files[2:] == ["month=2026-02/part_batch001.csv", "month=2026-02/part_batch002.csv"]
    assert pd.read_csv(raw / files[3], sep=";").columns.tolist() == raw_table.columns.tolist()


@pytest.mark.parametrize("last", ["2026-06.csv", "2026-06_batch001.csv", "2026-06_batch999.csv", "part-0.csv", "x_batch.csv"])
def test_a_batch_stands_between_the_last_month_and_the_next(last, tmp_path):
    following = "2026-07.csv" if last.startswith("2026") else "z.csv"
    for name in (last, _file_behind(Path(last)).name, _file_behind(_file_behind(Path(last))).name, following):
        (tmp_path / name).touch()
    names = [path.name for path in table_files(tmp_path)]
    assert (names[0], names[-1], len(names)) == (last, following, 4)


def test_applicants_with_the_same_cells_and_other_outcomes_are_both_kept(raw, contract, params, new_rows, tmp_path):
    one = new_rows(1, 4)
    both = pd.concat([one.assign(**{contract.target.name: value}) for value in (1, 0, 1)])
    rows, ids = append(raw, read_batch([written(both, tmp_path)], contract, 0.1), contract, params.prepare)
    assert rows == 2
    assert ids[1] == f"{ids[0]}-2"


def test_the_log_gives_the_settled_outcomes_of_the_approved_and_the_refused(contract, new_rows, tmp_path):
    rows = new_rows(6, 5).drop(columns=contract.target.name)
    url = f"sqlite:///{tmp_path}/log.db"
    day = 86400.0

    async def fill() -> None:
        import time

        log = PredictionLog.open(url)
        answers = results([0.9] * 6, [0.1] * 6, [500.0] * 6, ["approve"] * 4 + ["refuse"] * 2)
        for age, outcomes in ((400, ["good", "bad", "good", None]), (10, ["bad"] * 4)):
            name = new_request_id()
            inputs = json.dumps(json.loads(rows.to_json(orient="records"))).encode()
            await log.append([Record(name, time.time() - age * day, "m", inputs, answers, rows=6)])
            await log.outcomes([(name, i, outcome) for i, outcome in enumerate(outcomes) if outcome])
        await log.close()

    asyncio.run(fill())
    log = logged_applicants(open_store(url, create=False), contract)
    assert len(log) == 12
    found = labelled(log, contract, outcome_days=365)
    assert list(found[contract.target.name]) == ["1", "0", "1"], "10 days are too early, and who was refused has no outcome"
    assert (found[contract.features[0]].astype(float) == rows[contract.features[0]][:3].to_numpy()).all()
    assert len(refused(log, contract)) == 4
    with pytest.raises(DataError, match="8 of them approved 5 days ago or earlier"):
        labelled(log.assign(outcome=np.nan), contract, outcome_days=5)
